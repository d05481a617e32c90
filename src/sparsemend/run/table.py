"""The chart of block rates after pruning, and the table a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.table import Table
from torch import nn

from sparsemend.names import MEAN, METRIC, TASK_METRIC
from sparsemend.result.format import format_metric
from sparsemend.sparse.count import asked_per_block
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.terminal import RUN_WIDTH, console

STAGE_OF = {"dense": "load", "pruned": "prune", "repaired": "repair"}

BAR = 40  # columns of a full bar, at sparsity 1


def show_rates(
    content: dict[str, Any], model: nn.Module, asked: Mapping[str, float], mean: float
) -> None:
    """Store the sparsity asked of each block in a result, and chart it where blocks differ."""
    rates = asked_per_block(model, asked)
    scores = dict(asked.scores) if isinstance(asked, Allocation) else {}
    content["sparsity"] = {"asked_per_block": rates, "scores": scores}
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
        title=f"{config['model']['name']} on {protocol['corpus']} "
        f"({protocol['windows']} test windows of {protocol['seqlen']} tokens)",
        caption=f"peak memory: {_scope(result['peak_scope'])}",
    )
    table.add_column("")
    for column in (*measures, "sparsity asked", "achieved", "seconds", "peak memory"):
        table.add_column(column, justify="right")
    for state, stage in STAGE_OF.items():
        dense = state == "dense"
        cost = result["cost"][stage]
        table.add_row(
            _label(state, config),
            *(_perplexity(result["metrics"][state], metric) for metric in measures.values()),
            "-" if dense else f"{sparsity['target']:.4f}",
            "-" if dense else f"{sparsity['achieved']:.4f}",
            f"{cost['seconds']:.1f}",
            f"{cost['peak_bytes'] / 2**20:,.0f} MiB",
        )
    return table


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


def _scope(scope: str) -> str:
    return {
        "stage": "resident, reset per stage",
        "process": "resident, whole process",
        "cuda": "torch CUDA allocator, reset per stage",
    }[scope]
