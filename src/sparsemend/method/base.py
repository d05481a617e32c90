"""The contract of every repair method.

`repair(model, bench)` works in place and leaves every invariant true: supports hold, the model is
foldable as promised, nothing of the training machinery stays behind.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.walk import Calibration
from sparsemend.data.base import Examples
from sparsemend.names import PARTS
from sparsemend.pruner.base import Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.training.module import TrainerFactory

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The data, tools and settings that a method may use besides the model.

    calibration: windows, and where blocks see them.  train and validation: labelled windows
    (N, T), empty where the method does not train.
    """

    calibration: Calibration
    train: Examples
    validation: Examples
    pruner: Pruner
    allocation: Mapping[str, float]  # full linear name -> sparsity
    sparsity: float
    pattern: Pattern
    load_dense: Callable[[], PreTrainedModel]
    make_trainer: TrainerFactory
    device: torch.device
    out: Path
    seed: int
    micro_batch: int | None = None  # windows at once in a training step; None: all of its share
    activation_checkpointing: bool = False  # blocks are recomputed in backward
    rounding: str = "pruner"  # how rates become whole weights, see `rounding`
    true_sequential: bool = False  # how the run's pruner goes through a block, see `prune`
    resume_from: Path | None = None

    @property
    def parts(self) -> Path:
        """Folder for one file per finished part (block, round) of the work, each written whole.

        It holds files only where an earlier attempt of this very configuration is continued.
        """
        return self.out / PARTS


def check_gradients() -> None:
    """Raise ValueError under torch.inference_mode, whose tensors no gradient can flow through."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "repair is called under torch.inference_mode(), where nothing can be trained; call it "
            "outside of that, or under torch.no_grad()"
        )


class RepairMethod(ABC):
    """Repairs a pruned model in place.

    repairs: it changes the model.  trains: it reads the training windows.  trains_blocks: it
    trains block by block on the calibration windows, for `epochs`, less the share `held_out`.
    low_rank: it trains factors of one rank per linear, whose parameters set an arena's budget.
    calibration_passes: forwards over the calibration windows beside the pruner's (estimates).
    streams: it works on one block at a time, so that the others may lie in files.
    foldable: the result is one sparse matrix per linear; otherwise base and adapter stay apart.
    holds_support: effective weights lie on the support also while the method works.
    """

    repairs: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    trains_blocks: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    calibration_passes: ClassVar[int] = 0
    streams: ClassVar[bool] = False
    foldable: ClassVar[bool] = True
    holds_support: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = False  # reads dense weights; refused on pruned checkpoints
    # the method changes the sparsities of single linears and keeps their mean; `asked` in the
    # diagnostics gives them by name
    reallocates: ClassVar[bool] = False

    @property
    def reads_pruned(self) -> bool:
        """Whether it reads the model as pruned in one shot; where not, none is made before it."""
        return True

    @abstractmethod
    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Repair `model` in place; returns diagnostics for the result (may be empty)."""

    def check_train(self, train: Examples) -> None:
        """Raise ValueError, before the model is loaded, where these windows cannot train it."""
        return

    def check_validation(self, validation: Examples) -> None:
        """Raise ValueError, before the model is loaded, where these windows measure nothing."""
        return

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        """Raise ValueError, before any long work, if the method cannot repair this model.

        supports: bool (O, I) per linear of an already pruned checkpoint, None before pruning.
        """
        return

    def save_adapter(self, model: PreTrainedModel, folder: Path, *, base: str) -> None:
        """Write the adapter that stays apart from the weights of `base`; nothing if foldable."""
        return

    def load_adapter(self, model: PreTrainedModel, folder: Path) -> None:
        """Attach what `save_adapter` wrote to its base's linears; ValueError if it writes none."""
        raise ValueError(f"{type(self).__name__} reads no adapter back, but there is {folder}")
