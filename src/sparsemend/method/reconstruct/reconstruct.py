"""Repair block by block against the dense model's blocks, masks held, without a loss on tokens.

    theta_i = argmin mean (f_i(X; keep * theta) - Y)^2,   Y = dense f_i on the inputs named below

`form=weights` trains every kept weight of the block (EBFT, Guo et al. 2024, arXiv 2402.12419);
`form=masked_lora` a low-rank update under the mask, `biases` and `norms` those too (PERP, Zimmer
et al. 2023, arXiv 2312.15230).  In both papers X are the outputs of the tuned sparse blocks before
this one and Y the dense block's outputs on that same X; other streams are options.  Deviations:
clipping acts on unscaled gradients, where EBFT's code clips scaled ones; windows are held out and
a block may stop early.

One pair of blocks is on the device at a time, with optimizer state for one block, X and Y.  A run
that is killed continues at the block it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.residency import streams
from sparsemend.blocks.walk import Visit
from sparsemend.config.seeds import mix_seed
from sparsemend.method.adapter.fold import fold_adapters
from sparsemend.method.adapter.low_rank import (
    SCALE_RULES,
    attach_started,
    check_adapter,
    check_ranks,
    factors,
    scale_of,
)
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear
from sparsemend.method.adapter.vectors import narrow, original, vectors, widen
from sparsemend.method.base import RepairMethod, Workbench, check_gradients
from sparsemend.method.held_out import check_windows, even_micro_batch, training_batches
from sparsemend.method.reconstruct.block_fit import BlockFit, BlockPlan, FitOutcome, block_error
from sparsemend.method.reconstruct.finished import BlockRows, load_block, save_block
from sparsemend.method.reconstruct.pairs import BlockPair, pairs
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears
from sparsemend.training.batches import StepSplit
from sparsemend.training.plan import check_choice

log = logging.getLogger(__name__)

CHOICES = {
    "form": ("weights", "masked_lora"),
    "inputs": ("sparse", "dense"),
    "targets": ("same_inputs", "dense_stream"),
    "scale_rule": SCALE_RULES,
}
HELD_OUT_ERROR = "held_out/relative_error"  # mean over blocks; learning rates are chosen by it
CROSS = ("sparse", "dense_stream")  # inputs and targets that come from two streams


@dataclass(kw_only=True)
class Reconstruct(BlockPlan, RepairMethod):
    """Tunes each block towards the dense block's outputs, then goes on behind the tuned block."""

    form: str
    inputs: str
    targets: str
    rank: int
    alpha: float
    scale_rule: str
    biases: bool
    norms: bool

    trains_blocks: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_adapter(self.rank, self.alpha, 0.0)

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        check_gradients()
        if self.form == "masked_lora":
            check_ranks(model, self.rank)

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        windows = bench.calibration.windows
        check_windows(len(windows), self.windows_per_step, self.held_out)
        model.requires_grad_(False).eval()
        dense = bench.load_dense().requires_grad_(False)
        rows = BlockRows()
        stream = "cross" if (self.inputs, self.targets) == CROSS else self.inputs
        calibration = replace(bench.calibration, together=self.split(bench).at_once)
        for pair in pairs(model, dense, calibration, stream, rows):
            path = bench.parts / f"block_{pair.tuned.index}.safetensors"
            if not streams(model) and path.exists():
                row = load_block(path, pair.tuned)
            else:
                row = self.tune(pair, bench)
                if not streams(model):
                    save_block(path, pair.tuned.block, row)
            rows.blocks.append(row)
        blocks = rows.blocks
        steps = sum(row["steps"] for row in blocks)
        return {
            "blocks": blocks,
            HELD_OUT_ERROR: mean(
                [row["after"].get("held_out", {}).get("relative") for row in blocks]
            ),
            "steps": steps,
            "windows_per_step": self.windows_per_step,
            # a step passes its windows through one block
            "tokens": round(steps / len(blocks) * self.windows_per_step * windows.shape[1]),
            "trained_parameters": sum(row["trained_parameters"] for row in blocks),
        }

    def tune(self, pair: BlockPair, bench: Workbench) -> dict[str, Any]:
        """Fit the block of one pair and fold what was attached; return the block's report row."""
        started = perf_counter()
        visit, targets, split = pair.tuned, pair.dense.outputs(), self.split(bench)
        before = self.errors(visit, targets, split)
        # of this block alone, so that a run continued at it draws the same
        seed = mix_seed(bench.seed, visit.index)
        self.attach(visit.block, seed)
        trained = self.free_trainable(visit.block)
        fit = FitOutcome(0, False)  # of a block in which nothing is pruned
        if any(parameter.requires_grad for parameter in visit.block.parameters()):
            fit = BlockFit(visit, targets, self, seed=seed, split=split).run()
        visit.block.requires_grad_(False).zero_grad(set_to_none=True)
        narrow(visit.block)
        lost = fold_adapters(visit.block)
        check_supports(visit.block)
        after = self.errors(visit, targets, split)
        seconds = perf_counter() - started
        log.info(
            "block %d/%d  relative error %.4f -> %.4f  mse %.3e -> %.3e  %d steps%s  %.1f s",
            visit.index + 1,
            visit.count,
            before["all"]["relative"],
            after["all"]["relative"],
            before["all"]["mse"],
            after["all"]["mse"],
            fit.steps,
            " (stopped early)" if fit.stopped_early else "",
            seconds,
        )
        return {
            "block": visit.name,
            "before": before,
            "after": after,
            **asdict(fit),
            **lost,
            "trained_parameters": trained,
            "seconds": round(seconds, 3),
        }

    def split(self, bench: Workbench) -> StepSplit:
        """A step's windows in equal parts, of which each is a forward of the walk too.

        A block is given arguments, such as masks, that are recorded by the size of a batch.
        """
        at_once = even_micro_batch(self.windows_per_step, bench.micro_batch)
        return StepSplit(windows=self.windows_per_step, micro_batch=at_once)

    def errors(
        self, visit: Visit, targets: Sequence[Tensor], split: StepSplit
    ) -> dict[str, dict[str, float]]:
        """Errors of the block as it is, over all windows and over the held-out ones."""
        first = training_batches(len(targets), self.held_out, per_step=split.count)
        errors = {
            "all": block_error(visit, targets),
            "held_out": block_error(visit, targets, first=first),
        }
        return {name: asdict(error) for name, error in errors.items() if error is not None}

    def attach(self, block: nn.Module, seed: int) -> None:
        """Attach the tensors that train to the block without changing its function."""
        if self.form == "masked_lora":
            scale = scale_of(self.alpha, self.rank, self.scale_rule)

            def make(linear: SparseLinear, start: Tensor) -> MaskedLoraLinear:
                return MaskedLoraLinear(linear, start, scale)

            attach_started(block, make, rank=self.rank, seed=seed)
        # last: an adapter takes over a bias as a plain parameter
        widen(self.trained_tensors(block))

    def trained_tensors(self, block: nn.Module) -> list[tuple[nn.Module, str]]:
        """(module, attribute) of every tensor that trains in place."""
        places = vectors(block, biases=self.biases, norms=self.norms)
        if self.form == "weights":
            places += [(linear, "weight") for _, linear in sparse_linears(block)]
        return places

    def free_trainable(self, block: nn.Module) -> int:
        """Let gradients reach what trains; return its parameter count without pruned weights."""
        trained = [original(*place) for place in self.trained_tensors(block)] + factors(block)
        for parameter in trained:
            parameter.requires_grad_(True)
        count = sum(parameter.numel() for parameter in trained)
        if self.form == "weights":
            count -= sum(int((~linear.keep).count_nonzero()) for _, linear in sparse_linears(block))
        return count


def mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
