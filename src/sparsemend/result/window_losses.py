"""The loss of every test window, beside result.json, so that runs can be compared window by window.

`window_losses/<state>.safetensors` holds one tensor per metric that is a mean over the test
windows: its name -> (N,) fp32, in the order of the test text.  Where windows count unequally,
as a task's examples do by their labelled tokens, another tensor (N,) holds their weights.  Read
here without torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsemend.files import replacing
from sparsemend.names import WINDOW_LOSSES

if TYPE_CHECKING:
    from torch import Tensor


def path_of(run: Path, state: str) -> Path:
    """The file of a run folder that holds the losses of dense, pruned or repaired."""
    return run / WINDOW_LOSSES / f"{state}.safetensors"


def write_losses(run: Path, state: str, losses: Mapping[str, Tensor]) -> None:
    """Write the losses of one state; nothing where no metric is a mean over windows."""
    if not losses:
        return
    with replacing(path_of(run, state)) as partial:
        save_file({name: tensor.float().numpy() for name, tensor in losses.items()}, partial)


def repeat_losses(run: Path, state: str, other: str) -> None:
    """Copy the losses of `state` to `other`, the same model where nothing was repaired."""
    if path_of(run, state).is_file():
        with replacing(path_of(run, other)) as partial:
            shutil.copyfile(path_of(run, state), partial)


def read_losses(run: Path, state: str, metric: str) -> np.ndarray | None:
    """The losses (N,) fp64; None where the run holds none for this state and metric.

    ValueError where the file is broken.
    """
    path = path_of(run, state)
    if not path.is_file():
        return None
    try:
        losses = load_file(path).get(metric)
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}); run that cell again") from error
    return None if losses is None else losses.astype(np.float64)
