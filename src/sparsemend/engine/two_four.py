"""2:4 weights as NVIDIA's sparse tensor cores take them, by torch's semi-structured tensors.

torch compresses and multiplies by cuSPARSELt where its build has that, else by CUTLASS.  Both need
a card of compute capability 8.0 or later, half precision and sides that are multiples: 16 and 16
with cuSPARSELt, 32 and 64 with CUTLASS.  Not measured: no card was at hand.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.sparse.selection import rank_in_group

LEAST_CAPABILITY = (8, 0)  # Ampere, the first with sparse tensor cores


def is_two_four(weight: Tensor) -> bool:
    """Whether at most two of every four inputs of (O, I) are not zero; I is a multiple of 4."""
    groups = weight.reshape(-1, 4)
    dropped = rank_in_group(groups.abs().float()) < 2
    return not groups.masked_fill(~dropped, 0).any()


def compress_two_four(weight: Tensor) -> Tensor:
    """The weight (O, I) as a semi-structured tensor; ValueError says in one line why it cannot."""
    if weight.device.type != "cuda":
        raise ValueError("2:4 products exist on CUDA devices only")
    if weight.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"2:4 products need float16 or bfloat16, not {weight.dtype}")
    if torch.cuda.get_device_capability(weight.device) < LEAST_CAPABILITY:
        raise ValueError("2:4 products need a card of compute capability 8.0 or later")
    if weight.shape[1] % 4 or not is_two_four(weight):
        raise ValueError("the weights are not 2:4; prune with pattern=2:4")
    if torch.backends.cusparselt.is_available():  # type: ignore[no-untyped-call,unused-ignore]
        kind = torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    else:
        kind = torch.sparse.SparseSemiStructuredTensorCUTLASS  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*prototype stage")
            compressed: Tensor = kind.from_dense(weight.detach().contiguous())
    except (RuntimeError, NotImplementedError) as error:
        rows, columns = weight.shape
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no 2:4 product with a {rows} x {columns} weight: {reason}") from error
    return compressed


def stored_parts(compressed: Tensor) -> list[Tensor]:
    """What a semi-structured tensor keeps; cuSPARSELt's has all in one."""
    assert isinstance(compressed, torch.sparse.SparseSemiStructuredTensor)
    return [part for part in (compressed.packed, compressed.meta) if part is not None]


def multiply_two_four(input: Tensor, compressed: Tensor, bias: Tensor | None) -> Tensor:
    """(.., O) = input (.., I) W^T + bias; torch takes contiguous matrices alone."""
    tokens = input.reshape(-1, input.shape[-1]).contiguous()
    return F.linear(tokens, compressed, bias).view(*input.shape[:-1], compressed.shape[0])
