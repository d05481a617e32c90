"""A module as bytes without the values of its parameters and buffers, which follow by other means.

A model is sent to other processes as structure of some kilobytes, not as gigabytes.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn


class WithoutValues(pickle.Pickler):
    """Pickles a module with zeros for the values of its parameters and buffers."""

    def __init__(self, file: io.BytesIO, module: nn.Module) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.left_out = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def reducer_override(self, value: Any) -> Any:
        if id(value) not in self.left_out:
            return NotImplemented
        layout = (value.size(), value.stride(), value.dtype)
        return blank, (*layout, isinstance(value, nn.Parameter), value.requires_grad)


def blank(
    size: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    is_parameter: bool,
    requires_grad: bool,
) -> Tensor:
    """Zeros of this layout; fresh zeros cost no memory before something is written to them."""
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    zeros = torch.zeros(reach if size.numel() else 0, dtype=dtype).as_strided(size, stride)
    return nn.Parameter(zeros, requires_grad=requires_grad) if is_parameter else zeros


def without_values(module: nn.Module) -> bytes:
    """`module` pickled, its parameters and buffers as zeros, tied ones still tied."""
    file = io.BytesIO()
    try:
        WithoutValues(file, module).dump(module)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"this model or method cannot be sent to other processes ({error}); hooks and "
            "callbacks must be functions and classes of a module, or use one device"
        ) from error
    return file.getvalue()
