"""The chart of block rates after pruning, and the table a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.table import Table
from torch import nn

from sparsemend.blocks.names import with_saved_names
from sparsemend.names import MEAN, METRIC, STATES, TASK_METRIC
from sparsemend.result.format import format_metric
from sparsemend.sparse.count import asked_per_block
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.terminal import RUN_WIDTH, console

STAGE_OF = {"pruned": "prune", "repaired": "repair"}  # what makes a state, before it is measured

BAR = 40  # columns of a full bar, at sparsity 1


def show_rates(
    content: dict[str, Any], model: nn.Module, asked: Mapping[str, float], mean: float
) -> None:
    """Store the sparsity asked of each block in a result, and chart it where blocks differ."""
    rates = with_saved_names(model, asked_per_block(model, asked))
    scores = with_saved_names(model, asked.scores) if isinstance(asked, Allocation) else {}
    content["sparsity"] |= {"asked_per_block": rates, "scores": scores}
    if max(rates.values()) - min(rates.values()) > 1e-3:  # more than rounding to whole weights
        console(RUN_WIDTH).print(rates_chart(rates, scores, mean))


def rates_chart(per_block: Mapping[str, float], scores: Mapping[str, float], mean: float) -> Table:
    """A bar per block for the (mean) rate asked of its linears, with its score if it has one."""
    scored = per_block.keys() <= scores.keys()
    table = Table(title=f"sparsity by block, mean {mean:.4f}", box=None, pad_edge=False)
    table.add_column("block", justify="right")
    table.add_column("sparsity", justify="right")
    if scored:
        table.add_column("score", justify="right")
    table.add_column("", width=BAR)
    for block, rate in per_block.items():
        score = [f"{scores[block]:.4g}"] if scored else []
        name = block.rpartition(".")[2]
        table.add_row(name, f"{rate:.4f}", *score, Bar(size=1, begin=0, end=rate, width=BAR))
    return table


def summary_table(result: Mapping[str, Any]) -> Table:
    """dense / pruned / repaired: perplexity, sparsity asked and achieved, seconds, peak memory.

    Seconds and peak are those of the row's own work: to prune and measure what is pruned, to repair
    and measure what is repaired, to measure what is dense.

    Where the data has a task, its perplexity stands beside that of the test windows; so does the
    mean accuracy of zero-shot tasks where they were measured.
    """
    config, protocol, sparsity = result["config"], result["protocol"], result["sparsity"]
    measures = {"perplexity": METRIC}
    if TASK_METRIC in result["metrics"]["dense"]:
        measures["task"] = TASK_METRIC
    if any(MEAN in measured for measured in result["metrics"].values()):
        measures["zero-shot"] = MEAN
    table = Table(
        title=f"{_debug(config)}{config['model']['name']} on {protocol['corpus']} "
        f"({protocol['windows']} test windows of {protocol['seqlen']} tokens)",
        caption=f"{_other_seconds(result)}\npeak memory: {_scope(result['peak_scope'])}",
    )
    table.add_column("")
    for column in (*measures, "sparsity asked", "achieved", "seconds", "peak memory"):
        table.add_column(column, justify="right")
    for state in (state for state in STATES if state in result["metrics"]):
        dense = state == "dense"
        table.add_row(
            _label(state, config),
            *(_perplexity(result["metrics"][state], metric) for metric in measures.values()),
            "-" if dense else f"{sparsity['target']:.4f}",
            "-" if dense else f"{sparsity['achieved']:.4f}",
            _seconds(result, state),
            f"{max(spent['peak_bytes'] for spent in _work(result, state)) / 2**20:,.0f} MiB",
        )
    return table


def _debug(config: Mapping[str, Any]) -> str:
    """The warning before a title that a run was cut short; empty for others."""
    debug = config.get("debug")
    return f"DEBUG RUN, {debug['blocks']} blocks: " if debug else ""


def _label(state: str, config: Mapping[str, Any]) -> str:
    if state == "dense":
        return "dense"
    section = config["pruner" if state == "pruned" else "method"]
    return f"{state} ({section['_target_'].rsplit('.', 1)[-1]})"


def _perplexity(metrics: Mapping[str, float | None], metric: str) -> str:
    if metric not in metrics:
        return "-"
    value = metrics[metric]
    return "not finite" if value is None else format_metric(value, 3)


def _work(result: Mapping[str, Any], state: str) -> list[Mapping[str, Any]]:
    """What a row cost: making the state, where something makes it, and measuring it."""
    cost = result["cost"]
    made = [cost[STAGE_OF[state]]] if state in STAGE_OF else []
    measured = cost.get("evaluate", {}).get("by_state", {}).get(state)
    return [*made, *([measured] if measured else [])]


def _seconds(result: Mapping[str, Any], state: str) -> str:
    """The seconds of a row; what an earlier run spent of them stands in brackets."""
    seconds = [spent["seconds"] for spent in _work(result, state)]
    if "from_run" in result and state in STAGE_OF:
        return " + ".join([f"({seconds[0]:.1f})", *(f"{spent:.1f}" for spent in seconds[1:])])
    return f"{sum(seconds):.1f}"


def _other_seconds(result: Mapping[str, Any]) -> str:
    """What the seconds of the rows leave out: loading and exporting."""
    cost = result["cost"]
    others = [f"{s} {cost[s]['seconds']:.1f} s" for s in ("load", "export") if s in cost]
    earlier = ["in brackets: seconds of the run measured again"] if "from_run" in result else []
    return "; ".join([f"besides: {', '.join(others)}", *earlier])


def _scope(scope: str) -> str:
    return {
        "stage": "resident, reset per stage",
        "process": "resident, whole process",
        "cuda": "torch CUDA allocator, reset per stage",
    }[scope]
