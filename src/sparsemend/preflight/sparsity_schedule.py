"""Check what a sparsity schedule demands of its run (no torch).

The config and the headers of the model's files alone are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import TensorShape, linear_shapes
from sparsemend.checkpoint.model import Model
from sparsemend.names import ROUNDINGS
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates.erdos_renyi import rates as erdos_renyi_rates
from sparsemend.sparsity_schedule.rates.options import check_options
from sparsemend.sparsity_schedule.rates.progression import check_difference
from sparsemend.sparsity_schedule.rates.rates_file import WITHIN, by_linear, check_rates, read_rates

MODULES = "sparsemend.sparsity_schedule."


def check_schedule(cfg: DictConfig, pattern: Pattern, model: Model) -> None:
    """Raise ValueError or FileNotFoundError where the schedule cannot give legal rates."""
    schedule = cfg.sparsity_schedule
    target = str(schedule.get("_target_", ""))
    if not target.startswith(MODULES) or str(cfg.pruner.get("_target_")).endswith(".Existing"):
        return  # a user's own, or a support that is there already
    stem = target.removeprefix(MODULES).split(".")[0]
    check_options({str(key): value for key, value in schedule.items()})
    check_granularity(schedule, stem, pattern)
    check_limits(schedule, cfg.sparsity)
    linears = linear_shapes(model.blocks) if model.blocks is not None else None
    if stem == "atp":
        check_progression(schedule, cfg.sparsity, model)
    if stem == "file":
        check_file(schedule, cfg.sparsity, pattern, linears)
    if stem == "er_plus" and linears:
        check_dense_layer(schedule, cfg.sparsity, linears)


def check_rounding(cfg: DictConfig, pattern: Pattern) -> None:
    """rounding is known, and no pattern, pruner or method undoes an exact budget."""
    rounding = cfg.get("rounding")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding} is not one of {', '.join(ROUNDINGS)}")
    if rounding == "pruner" or str(cfg.pruner.get("_target_")).endswith(".Existing"):
        return
    if not pattern.unstructured:
        raise ValueError(
            f"rounding=exact_budget with pattern {pattern}, which fixes the zeros of every group "
            "itself; use rounding=pruner"
        )
    if cfg.pruner.get("variant"):
        raise ValueError(
            "rounding=exact_budget with pruner.variant=true, whose threshold gives no exact count; "
            "use rounding=pruner or pruner.variant=false"
        )
    if cfg.method.get("start") == "pruner":
        raise ValueError(
            "rounding=exact_budget is undone by method.start=pruner, which prunes again by row; "
            "use method.start=given or rounding=pruner"
        )


def check_granularity(schedule: DictConfig, stem: str, pattern: Pattern) -> None:
    """A pattern has one N per block, which rates by linear contradict."""
    if pattern.unstructured:
        return
    if stem in ("er", "er_plus"):
        raise ValueError(
            f"sparsity_schedule={stem} gives each linear a rate of its own, which cannot be whole "
            f"N of pattern {pattern}; use pattern=unstructured or another schedule"
        )
    if schedule.get("granularity") == "linear":
        raise ValueError(
            f"sparsity_schedule={stem} with granularity=linear gives each linear a rate of its "
            f"own, which cannot be whole N of pattern {pattern}; use "
            "sparsity_schedule.granularity=block or pattern=unstructured"
        )


def check_limits(schedule: DictConfig, sparsity: float) -> None:
    """The target lies within the limits of the rates, where the schedule uses them."""
    low, high = schedule.get("min_sparsity"), schedule.get("max_sparsity")
    if low is None or schedule.get("budget") == "reference":
        return
    if not low <= sparsity <= high:
        raise ValueError(
            f"sparsity {sparsity} is not in [{low:g}, {high:g}], the range of every rate; change "
            "sparsity_schedule.min_sparsity or max_sparsity"
        )


def check_progression(schedule: DictConfig, sparsity: float, model: Model) -> None:
    """The common difference of an ATP schedule lies within its bound."""
    difference = schedule.common_difference
    if not isinstance(difference, int | float) or isinstance(difference, bool):
        raise ValueError(f"sparsity_schedule.common_difference={difference} is not a number")
    if model.config is not None and model.config.blocks is not None:
        check_difference(difference, sparsity, model.config.blocks)


def check_file(
    schedule: DictConfig,
    sparsity: float,
    pattern: Pattern,
    linears: Mapping[str, TensorShape] | None,
) -> None:
    """The file of rates can be read, and fits the model where its headers are at hand."""
    rates = read_rates(Path(schedule.path))
    if linears:
        sizes = {name: shape[0] * shape[1] for name, shape in linears.items()}
        check_rates(by_linear(rates, sizes), sizes, sparsity, pattern, schedule.tolerance)


def check_dense_layer(
    schedule: DictConfig, sparsity: float, linears: Mapping[str, TensorShape]
) -> None:
    """The linears that ER-plus keeps dense leave enough to prune.

    Files do not say which linear of a block comes last; none of them leaves more than the
    smallest does.
    """
    blocks = {name: _block(name) for name in linears}
    inside = [name for name in linears if blocks[name] == max(blocks.values())]
    smallest = min(inside, key=lambda name: linears[name][0] * linears[name][1])
    dense = inside if schedule.dense == "last_block" else [smallest]
    erdos_renyi_rates(linears, sparsity, dense)


def _block(name: str) -> int:
    match = WITHIN.fullmatch(name)
    return int(match[1].split(".")[0]) if match else 0
