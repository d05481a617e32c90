"""One pruning of a saved model twice, in memory and with its blocks in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import residency_of, streams
from sparsemend.blocks.self_check import check_walk
from sparsemend.blocks.walk import Calibration
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.layout.names import name_linears_
from sparsemend.model import PretrainedModel
from sparsemend.names import METRIC
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.rounding import apply_rounding
from sparsemend.run.export import export, save_supports, to_dense_
from sparsemend.sparse.count import sparsity_report
from sparsemend.sparse.linear import check_supports
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import SparsitySchedule


def source(folder: Path, dtype: str = "float32") -> PretrainedModel:
    """The model of a folder, as `model=hf` names it."""
    return PretrainedModel(
        name="saved",
        path=str(folder),
        revision=None,
        dtype=dtype,
        context_length=16,
        attention=None,
        trust_remote_code=False,
    )


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What decides one pruning."""

    pruner: Pruner
    schedule: SparsitySchedule
    tokens: Tensor
    sparsity: float = 0.5
    pattern: str = "unstructured"
    rounding: str = "pruner"
    true_sequential: bool = False
    key: str | None = None

    def __call__(self, model: PreTrainedModel) -> None:
        """Check and prune the model in place."""
        name_linears_(model)
        calibration, pattern = Calibration((self.tokens,)), Pattern.parse(self.pattern)
        check_walk(model, self.tokens[:1])
        allocation = self.schedule.allocate(model, calibration, self.sparsity, pattern)
        pruner, allocation = apply_rounding(self.rounding, self.pruner, allocation)
        residency_of(model).begin("prune", self.key)
        order = {"true_sequential": self.true_sequential}
        prune(model, calibration, pruner, allocation, pattern, **order)
        check_supports(model)


def written(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The tensors of weights and masks that an export of the pruned model writes."""
    save_supports(model, folder / "masks.safetensors")
    report = sparsity_report(model)
    if not streams(model):
        to_dense_(model)
    export(model, None, folder / "model", masks=folder / "masks.safetensors", card=None)
    tensors = {"zeros": torch.tensor(report.total.zeros)}
    for file in (folder / "model").glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def both_ways(folder: Path, dtype: str, pruning: Pruning) -> tuple[dict[str, Tensor], ...]:
    """What a pruning writes, of the model in memory and of the one whose blocks are in files."""
    results = []
    for name in ("memory", "files"):
        model = (
            source(folder, dtype).load(seed=0)
            if name == "memory"
            else source(folder, dtype).open_streamed(folder=folder.parent / "blocks")
        )
        pruning(model)
        results.append(written(model, folder.parent / name))
    return tuple(results)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@dataclass(kw_only=True)
class Counted(Evaluation):
    """Counts the blocks that are not in memory, as a run's evaluation does its work by block."""

    streams: ClassVar[bool] = True

    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        away = [b for b in find_blocks(model)[1] if all(p.is_meta for p in b.parameters())]
        return {METRIC: 1.0, "away/blocks": float(len(away))}
