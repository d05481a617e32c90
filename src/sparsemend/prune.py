"""The one prune loop: visit a block, observe its inputs, prune its linears, go on.

Statistics of a block are taken before any of its linears changes, on inputs from the already
pruned blocks before it (Wanda and SparseGPT).  In true-sequential order (Frantar et al. 2023, GPTQ,
arXiv 2210.17323, an option of its code) they are taken anew for each group of linears, after the
groups that the block calls before it are pruned.

A linear that no token reaches stays dense, an nn.Linear among SparseLinears: nothing says which of
its weights matter.  So does one that the model never calls, whatever the pruner: where its weight
alone is read, its inputs are unknown.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from sparsemend.blocks.arguments import Recorded
from sparsemend.blocks.device_memory import left_on
from sparsemend.blocks.find import called_linears, find_blocks, is_never_called, linears_of
from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import home_of, visit_blocks
from sparsemend.blocks.statistics import Statistic
from sparsemend.blocks.walk import Calibration, Visit
from sparsemend.errors import NotFinite
from sparsemend.pruner.base import Pruner
from sparsemend.sparse.count import LinearCount, count_zeros
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_of_all, lowest_per_group
from sparsemend.terminal import StageLines

log = logging.getLogger(__name__)

LINES = 4  # log lines of one pruning, however many blocks there are


@dataclass(frozen=True)
class FirstBlock:
    """The inputs of pruning before it changes a weight, the same for all rates."""

    recorded: Recorded
    statistics: Mapping[str, Statistic]


def observe_first(model: nn.Module, calibration: Calibration, pruner: Pruner) -> FirstBlock | None:
    """Run calibration up to the first block and observe it; None where the pruner needs none.

    Several calls of `prune` on equal dense models can take this instead of repeating that part.
    """
    if not pruner.needs_calibration:
        return None
    recorded = calibration.record(model)
    for visit in calibration.walk(model, recorded=recorded):
        statistics = visit.observe(lambda width, place: _require_statistic(pruner, width, place))
        break
    return FirstBlock(recorded, settle(statistics, pruner))


def settle(statistics: Mapping[str, Statistic], pruner: Pruner) -> dict[str, Statistic]:
    """Complete statistics by linear as `pruner` shares them; linears of one input share one."""
    settled: dict[int, Statistic] = {}
    for statistic in statistics.values():
        if id(statistic) not in settled:
            settled[id(statistic)] = pruner.settle(statistic)
    return {name: settled[id(statistic)] for name, statistic in statistics.items()}


def prune(
    model: nn.Module,
    calibration: Calibration,
    pruner: Pruner,
    allocation: Mapping[str, float],
    pattern: Pattern,
    *,
    first: FirstBlock | None = None,
    true_sequential: bool = False,
) -> None:
    """Replace the prunable linears of `model` by SparseLinears, block by block, in place.

    Those that stay dense are left; see above.  calibration: not read by pruners that need none.
    first: not with `true_sequential`.
    """
    started = perf_counter()
    if not pruner.needs_calibration:
        count = len(find_blocks(model)[1])
        for index, name, block in visit_blocks(model, changes=True, carried=pruner):
            targets = _to_prune(block)
            rates = _rates_of(name, block, targets, pruner, allocation)
            for inner, linear in targets.items():
                with _naming(f"{name}.{inner}"):
                    pruned = prune_linear(linear, pruner, None, rates[inner], pattern)
                block.set_submodule(inner, pruned)
            _report(index, count, linears_of(block).values(), started)
        return
    recorded = None if first is None else first.recorded
    for visit in calibration.walk(model, recorded=recorded, changes=True, carried=pruner):
        statistics = None if first is None or visit.index else copy.deepcopy(dict(first.statistics))
        prune_block(
            visit,
            pruner,
            allocation,
            pattern,
            statistics=statistics,
            true_sequential=true_sequential,
        )
        _report(visit.index, visit.count, visit.linears.values(), started)


def prune_block(
    visit: Visit,
    pruner: Pruner,
    allocation: Mapping[str, float],
    pattern: Pattern,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    true_sequential: bool = False,
) -> None:
    """Prune every linear of one visited block, from given statistics or passes over its inputs.

    A pass serves all linears, or in true-sequential order one group of them.  Those that stay dense
    are left.
    """

    def fresh(width: int, device: torch.device) -> Statistic:
        return _require_statistic(pruner, width, device)

    targets = _to_prune(visit.block)
    pruner.around({}, [visit.full_name(n) for n in linears_of(visit.block) if n not in targets])
    for names in visit.call_groups(targets) if true_sequential else [list(targets)]:
        seen = dict(statistics or {})
        if names and statistics is None and pruner.needs_calibration:
            seen = visit.observe(fresh, names)
        full = {name: visit.full_name(name) for name in names}
        unread = [name for name in names if pruner.needs_calibration and seen.get(name) is None]
        idle = [name for name in unread if not isinstance(visit.linears[name], SparseLinear)]
        asked = {full[name]: allocation[full[name]] for name in names if name not in idle}
        rates = pruner.around(asked, [full[name] for name in idle])
        for name in names:
            linear, statistic = visit.linears[name], seen.pop(name, None)
            if name not in unread:
                rate = rates[full[name]]
                with _naming(full[name]):
                    pruned = prune_linear(linear, pruner, statistic, rate, pattern)
                visit.replace(name, pruned)
            elif isinstance(linear, SparseLinear):
                prune_by_magnitude_(linear, rates[full[name]], pattern)


def _rates_of(
    block_name: str,
    block: nn.Module,
    targets: Collection[str],
    pruner: Pruner,
    allocation: Mapping[str, float],
) -> dict[str, float]:
    """The rates of the target linears of a block, by their names in it; the others stay dense."""
    full = {name: f"{block_name}.{name}" for name in linears_of(block)}
    asked = {full[name]: allocation[full[name]] for name in targets}
    rates = pruner.around(asked, [full[name] for name in full if name not in targets])
    return {name: rates[full[name]] for name in targets}


def _to_prune(block: nn.Module) -> dict[str, nn.Linear]:
    """The linears of a block that are pruned: in one that was pruned before, those pruned then."""
    linears = {name: m for name, m in linears_of(block).items() if not is_never_called(m)}
    again: dict[str, nn.Linear] = {
        name: m for name, m in linears.items() if isinstance(m, SparseLinear)
    }
    return again or linears


@torch.no_grad()
def prune_by_magnitude_(linear: SparseLinear, sparsity: float, pattern: Pattern) -> None:
    """Remove the lowest weights of a linear that was pruned before and that no token reaches now.

    Its zeros are the lowest, so that they stay.
    """
    weight = linear.effective_weight().detach()
    score = weight.float().abs()
    if pattern.unstructured:
        # a product within rounding error of a whole number is that number
        removed = lowest_of_all(score, int(sparsity * score.numel() + 1e-6))
    else:
        removed = lowest_per_group(score, pattern.at(sparsity))
    linear.set_effective_(weight.masked_fill(removed, 0), ~removed)


def dense_statistics(
    model: nn.Module, calibration: Calibration, pruner: Pruner
) -> dict[str, Statistic]:
    """The statistic of every linear that tokens reach, by full name, from one dense pass.

    They wait on the host where blocks do.  Raises ValueError after the first block where those of
    all blocks would not fit.
    """
    statistics: dict[str, Statistic] = {}
    home = home_of(model) if calibration.device is None else calibration.device
    place = torch.device("cpu") if calibration.offload else home
    for visit in calibration.walk(model):
        fresh = visit.observe(lambda width, place: _require_statistic(pruner, width, place))
        seen = settle(fresh, pruner)
        kept = {id(statistic): statistic for statistic in seen.values()}  # linears share them
        for statistic in kept.values():
            statistic.to_(place)
        statistics |= {visit.full_name(name): statistic for name, statistic in seen.items()}
        if visit.index == 0:
            check_room(sum(each.bytes for each in kept.values()), visit.count, place)
    return statistics


def check_room(of_first: int, blocks: int, place: torch.device) -> None:
    """Raise ValueError unless the bytes of the first block's statistics fit for every block."""
    on_gpu, free = place.type == "cuda", left_on(place)
    if free is None or of_first * (blocks - 1) <= free:
        return
    raise ValueError(
        f"statistics=dense keeps what the pruner observes of all {blocks} blocks, "
        f"{of_first * blocks / 1e9:.3g} GB, and {'the GPU' if on_gpu else 'this machine'} has "
        f"{(free + of_first) / 1e9:.3g} GB for it; use statistics=exact, which keeps one block's"
        + (", or hardware.offload=true, which keeps them on the host" if on_gpu else "")
    )


def prune_observed(
    model: nn.Module,
    calibration: Calibration,
    statistics: Mapping[str, Statistic],
    pruner: Pruner,
    allocation: Mapping[str, float],
    pattern: Pattern,
) -> None:
    """Prune the linears that have statistics, which stay as they are: no pass over any tokens.

    calibration: only its device and offload are read.
    With statistics of the dense model no block sees what was pruned before it; the papers'
    protocol is `prune`.
    """
    started, count = perf_counter(), len(find_blocks(model)[1])
    place = calibration.device if calibration.offload else None
    blocks = visit_blocks(model, place, offload=calibration.offload, changes=True, carried=pruner)
    for index, block_name, block in blocks:
        linears = linears_of(block)
        targets = [name for name in linears if f"{block_name}.{name}" in statistics]
        rates = _rates_of(block_name, block, targets, pruner, allocation)
        copies: dict[int, Statistic] = {}  # with what linears of one input compute from it once
        for name in targets:
            original = statistics[f"{block_name}.{name}"]
            if id(original) not in copies:
                copies[id(original)] = copy.deepcopy(original)
                copies[id(original)].to_(linears[name].weight.device)
            statistic = copies[id(original)]
            with _naming(f"{block_name}.{name}"):
                pruned = prune_linear(linears[name], pruner, statistic, rates[name], pattern)
            block.set_submodule(name, pruned)
        _report(index, count, linears_of(block).values(), started)


@contextmanager
def _naming(linear: str) -> Iterator[None]:
    """Say in a NotFinite which linear, by its module name, has no scores."""
    try:
        yield
    except NotFinite as error:
        error.linear = linear
        raise


@torch.no_grad()
def prune_linear(
    linear: nn.Linear,
    pruner: Pruner,
    statistic: Statistic | None,
    sparsity: float,
    pattern: Pattern,
) -> SparseLinear:
    """Prune `linear` and return it as a SparseLinear, which takes its tensors over.

    A SparseLinear stays the same object: its effective weight is pruned, and an adapter moves its
    base under factors that it keeps.
    """
    pattern = pattern.at(sparsity)
    if isinstance(linear, SparseLinear):
        result = pruner(linear.effective_weight().detach(), statistic, sparsity, pattern)
        linear.set_effective_(result.weight, result.keep)
        return linear
    result = pruner(linear.weight.detach(), statistic, sparsity, pattern)
    linear.weight.copy_(result.weight)
    return SparseLinear(linear.weight, linear.bias, result.keep)


def _require_statistic(pruner: Pruner, width: int, device: torch.device) -> Statistic:
    statistic = pruner.statistic(width, device)
    if statistic is None:
        raise TypeError(f"{type(pruner).__name__} needs calibration but offers no statistic")
    return statistic


def _report(index: int, blocks: int, linears: Iterable[nn.Linear], started: float) -> None:
    """Log that a block is pruned, with the seconds since the first: LINES of them, else debug."""
    shown = (index + 1) * LINES // blocks > index * LINES // blocks
    level = logging.INFO if shown else logging.DEBUG
    if not shown:
        StageLines("blocks", blocks, ran=perf_counter() - started).tick(index + 1)
    if log.isEnabledFor(level):
        count = sum((count_zeros(linear) for linear in linears), LinearCount(0, 0))
        seconds = perf_counter() - started
        log.log(
            level, "block %d/%d  sparsity %.6f  %.1f s", index + 1, blocks, count.sparsity, seconds
        )


def check_widths(model: nn.Module, pattern: Pattern, *, tail: str) -> None:
    """Raise ValueError where an input width is not a multiple of M, unless tail is `reference`.

    With `reference` a short last group loses the same M - N weights, as the published codes do,
    and a warning says so.
    """
    if tail not in ("error", "reference"):
        raise ValueError(f"pattern_tail {tail!r} is not one of: error, reference")
    if pattern.unstructured:
        return
    for name, linear in called_linears(model).items():
        rest, called = linear.in_features % pattern.group_size, saved_name(model, name)
        if rest and tail == "error":
            raise ValueError(
                f"{called} has {linear.in_features} inputs, not a multiple of {pattern.group_size} "
                f"as pattern {pattern} needs; pattern_tail=reference prunes the short last group "
                "as the reference codes do"
            )
        if rest:
            log.warning("%s: last group has %d of %d inputs", called, rest, pattern.group_size)
