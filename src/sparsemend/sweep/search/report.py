"""Report a search: a table, a plot, the best overrides, the optimism gap, and the cost.

A Hydra callback that conf/search/base.yaml adds.

Optimism gap: the test perplexity of the trial that validation selects, minus the least test
perplexity among the trials, so never below zero.  Selecting by the test text reports the latter.

Cost in units of one run (load, measure dense, prune, measure): where the share f of it is done
once for all jobs of a process, n trials cost at least n - (n - 1) f.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from sparsemend.config.locations import conf_folder
from sparsemend.config.values import override_key, plain
from sparsemend.names import METRIC, ROUNDINGS, VALIDATION_METRIC
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.finished import command_line
from sparsemend.result.format import format_share
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import Remembered
from sparsemend.sweep.read import Cell, format_perplexity, read_cells
from sparsemend.sweep.search.plot import PLOT, Point, plot


class SearchReport(Callback):
    """Reports the trials of a search when it ends."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        settings = {key: config[key] for key in ("statistics", "rounding")}
        settings["search"] = plain(config.search)
        overrides = with_choices(
            with_rounding(list(config.hydra.overrides.task), settings["rounding"]),
            config.hydra.runtime.choices,
        )
        report(
            read_cells(folder),
            settings,
            lambda key, value: command_line(
                of_one_run(overrides, key, value), config.hydra.runtime.config_sources
            ),
            folder,
        )


def with_choices(overrides: Sequence[str], choices: Mapping[str, str | None]) -> list[str]:
    """The overrides of a search, after its choices of groups that differ from those of run.yaml.

    The search's yaml may have made them, of which the command of one run keeps nothing else.
    """
    chosen = {override_key(line) for line in overrides}
    differing = {
        group: choices[group]
        for group, usual in usual_choices().items()
        if group not in chosen and choices.get(group, usual) != usual
    }
    lines = [f"{g}={'null' if member is None else member}" for g, member in differing.items()]
    return [*lines, *overrides]


def usual_choices() -> dict[str, Any]:
    """Group -> member of run.yaml's defaults list, None of a group without one."""
    content = yaml.safe_load((conf_folder() / "run.yaml").read_text(encoding="utf-8"))
    pairs = (
        pair for entry in content["defaults"] if isinstance(entry, dict) for pair in entry.items()
    )
    return {g.removeprefix("optional "): m for g, m in pairs if not g.startswith("override ")}


def with_rounding(overrides: Sequence[str], rounding: str) -> list[str]:
    """The overrides of a search, which takes the exact budget where a single run does not."""
    if rounding == ROUNDINGS[0] or any(override_key(line) == "rounding" for line in overrides):
        return list(overrides)
    return [*overrides, f"rounding={rounding}"]


def report(
    cells: Sequence[Cell],
    config: Mapping[str, Any],
    single: Callable[[str, Any], str],
    folder: Path,
) -> None:
    """Print table, best point, gap and cost; write the plot.

    config: the search's own; single: the command of one run, from the searched key and a value.
    """
    search = config["search"]
    points, exact = points_of(cells, config)
    if not any(math.isfinite(point.objective(search["select_on"])) for point in points):
        return  # the sweeper says so, with the first error
    best = best_of(points, search["select_on"])
    console = Console()
    console.print(search_table(points, best, config))
    say = Console(soft_wrap=True, highlight=False, markup=False).print
    for line in (
        *unequal_sparsities(point.cell.counted for point in points),
        *conclusions(points, best, search),
        *([against_exact(best, exact)] if exact else []),
        *([cost] if (cost := cost_line([p.cell for p in points])) else []),
    ):
        say(line)
    say(f"best: {single(search['key'], best.value)}")
    if all(isinstance(point.value, int | float) for point in points):
        plot(points, best, search, folder)
        say(f"plot: {folder / PLOT}.png, .svg")


def points_of(cells: Sequence[Cell], config: Mapping[str, Any]) -> tuple[list[Point], Point | None]:
    """The finished trials by value, and the cell that repeats the best one exactly, if any."""
    key, points, exact = config["search"]["key"], [], None
    for cell in cells:
        if cell.status != "finished" or key not in cell.overrides:
            continue
        point = Point(
            cell,
            _number(cell.overrides[key]),
            _finite(cell.metric("repaired", METRIC)),
            _finite(cell.metric("repaired", VALIDATION_METRIC)),
        )
        if cell.result and cell.result.config["statistics"] == config["statistics"]:
            points.append(point)
        else:
            exact = point
    return sorted(points, key=lambda p: (isinstance(p.value, str), p.value)), exact


def best_of(points: Sequence[Point], select_on: str) -> Point:
    """The point with the least objective; on ties the smaller value of the key, as in the paper."""
    return min(points, key=lambda point: point.objective(select_on))  # points are sorted


def search_table(points: Sequence[Point], best: Point, config: Mapping[str, Any]) -> Table:
    """One line per value of the key; achieved: the exact zeros as a share of prunable weights."""
    search = config["search"]
    protocol = f"select_on={search['select_on']}, rounding={config['rounding']}"
    table = Table(title=f"search over {search['key']}, {protocol}")
    for column in ("cell", search["key"].split(".")[-1], "achieved", "validation", "test", ""):
        table.add_column(column, justify="right")
    for point in points:
        mark = "best" if point is best else ""
        uniform = point.value == search["baseline"]
        table.add_row(
            point.cell.name,
            f"{point.value:.6g}" if isinstance(point.value, float) else str(point.value),
            format_share(point.cell.achieved),
            format_perplexity(_finite_or_none(point.validation)),
            format_perplexity(_finite_or_none(point.test)),
            " ".join(filter(None, ["baseline" if uniform else "", mark])),
        )
    return table


def conclusions(points: Sequence[Point], best: Point, search: Mapping[str, Any]) -> list[str]:
    """Lines on the best point against the baseline, and what selecting by test text would hide."""
    lines = []
    baseline = next((point for point in points if point.value == search["baseline"]), None)
    if baseline is best:
        lines.append(f"no value beats the baseline {search['baseline']}")
    elif baseline is not None:
        lines.append(
            f"{search['key']}={best.value}: test {best.test:.4f}, baseline {baseline.test:.4f}"
        )
    if all(math.isnan(point.validation) for point in points):
        return lines
    by_test, by_validation = best_of(points, "test"), best_of(points, "validation")
    lines.append(
        f"optimism gap {by_validation.test - by_test.test:.4f}: selected by validation "
        f"{by_validation.value:.6g} has test {by_validation.test:.4f}, selected by test "
        f"{by_test.value:.6g} has {by_test.test:.4f}"
        if not any(isinstance(point.value, str) for point in (by_test, by_validation))
        else f"optimism gap {by_validation.test - by_test.test:.4f}"
    )
    return lines


def against_exact(best: Point, exact: Point) -> str:
    """One line that compares, at the best point, statistics=dense with the papers' protocol."""
    return (
        f"statistics=dense: test {best.test:.4f}, by the papers' protocol {exact.test:.4f} "
        f"({best.test / exact.test - 1:+.2%}), cell {exact.cell.name}"
    )


def cost_line(cells: Sequence[Cell]) -> str | None:
    """One line on the shared part of a run, the bound and the measured cost.

    None unless one process ran all trials.
    """
    done = [c.result for c in sorted(cells, key=lambda cell: int(cell.name)) if c.result]
    memory = done[0].cache.memory if done else None
    if len({result.process for result in done}) != 1 or len(done) < 2 or not memory:
        return None
    if any(part.hit for part in memory.values()):
        return None  # the first cell was not a whole run
    # on a CPU other work on the machine would count; a GPU's work is no processor time
    on_cpu = done[0].provenance.device == "cpu"
    run = _time(done[0], on_cpu)
    shared = sum(_time(part, on_cpu) for part in memory.values()) / run
    total = sum(_time(result, on_cpu) for result in done) / run
    bound = len(done) - (len(done) - 1) * shared
    unit = "processor seconds" if on_cpu else "seconds"
    return (
        f"cost: {len(done)} trials took {total:.2f} runs of {run:.1f} {unit}; "
        f"shared part f = {shared:.3f}, bound {bound:.2f}, {total / bound - 1:+.1%}"
    )


def _time(timed: RunResult | Remembered, on_cpu: bool) -> float:
    return (timed.processor_seconds if on_cpu else timed.seconds) or 0.0


def of_one_run(overrides: Sequence[str], key: str, value: Any) -> list[str]:
    """The overrides of one run at `value` of the searched key."""
    dropped = {"search", "cache", "hydra", "resume"}
    kept = [o for o in overrides if re.split("[./@]", override_key(o))[0] not in dropped]
    return [*kept, f"{key}={value}"]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _finite(value: float | None) -> float:
    return math.nan if value is None else value


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
