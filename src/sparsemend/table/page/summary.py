"""The head of the report page: the best figures as tiles, every group of runs as a row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sparsemend.names import METRIC
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.format import format_metric, format_share
from sparsemend.table.grouping import Group
from sparsemend.table.page.groups import names, total_seconds, with_unrepaired
from sparsemend.table.page.svg import short

HEADS = ("setting", "repaired", "pruned", "dense", "achieved", "trained", "seconds", "seeds")


def summary(groups: Sequence[Group]) -> str:
    """Tiles and the table of all runs."""
    runs = [run for group in groups for run in group.runs]
    dense = [v for run in runs if (v := run.value("dense", METRIC)) is not None]
    tiles = {
        "finished runs": str(len(runs)),
        "settings": str(len(groups)),
        "dense perplexity": f"{min(dense):.2f}" if dense else "-",
        **_best(groups),
        "seconds measured": f"{sum(map(total_seconds, runs)):,.0f}",
    }
    cards = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in tiles.items()
    )
    return f'<div class="tiles">{cards}</div><h2>Runs</h2>{_table(groups)}'


def _best(groups: Sequence[Group]) -> dict[str, str]:
    """The tile of the lowest perplexity after pruning and of the group that reached it, if any."""
    candidates = [
        (value, group)
        for group in with_unrepaired(groups)
        if (value := group.metric(METRIC)) is not None and _foldable(group)
    ]
    if not candidates:
        return {}
    value, group = min(candidates, key=lambda pair: pair[0])
    return {f"lowest: {group.series} at {group.row.amount}": f"{value:.2f}"}


def _foldable(group: Group) -> bool:
    """Whether the group may be the best of its sparsity: a model with an open adapter has none."""
    return all(run.foldable for run in group.runs)


def _table(groups: Sequence[Group]) -> str:
    """The table of all groups, the lowest perplexity of each model and amount marked."""
    best: dict[tuple[str, str], float] = {}
    for group in groups:
        if (value := group.metric(METRIC)) is not None and _foldable(group):
            place = (group.model, group.row.amount)
            best[place] = min(value, best.get(place, value))
    rows = "".join(
        _row(group, name, best.get((group.model, group.row.amount)))
        for group, name in zip(groups, names(groups), strict=True)
    )
    cells = "".join(f"<th>{head}</th>" for head in HEADS)
    inside = f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody>"
    notes = "".join(f"<p>{escape(line)}</p>" for line in _unequal(groups))
    return f'<div class="scroll"><table>{inside}</table></div>{notes}'


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Lines on the groups of one model and target that are not equally sparse."""
    lines = []
    for model in dict.fromkeys(group.model for group in groups):
        of_model = [group for group in groups if group.model == model and _foldable(group)]
        achieved = (group.mean(lambda run: run.sparsity) for group in of_model)
        amounts = (group.row.sparsity for group in of_model)
        lines += unequal_sparsities(zip(names(of_model), amounts, achieved, strict=True))
    return lines


def _row(group: Group, name: str, best: float | None) -> str:
    repaired = group.row.method != "none"
    achieved = group.mean(lambda run: run.sparsity)
    trained = group.runs[0].trained_parameters
    cells = [
        _perplexity(group, "repaired") if repaired else "-",
        _perplexity(group, "pruned"),
        _perplexity(group, "dense"),
        format_share(achieved),
        f"{trained:,}" if trained else "-",
        f"{group.mean(total_seconds):.0f}",
        str(len({run.seed for run in group.runs})),
    ]
    last = 0 if repaired else 1  # the cell of the state that these runs end with
    marked = last if group.metric(METRIC) == best else None
    shown = (
        f'<td class="best">{cell}</td>' if index == marked else f"<td>{cell}</td>"
        for index, cell in enumerate(cells)
    )
    return f"<tr><td>{escape(name)}</td>{''.join(shown)}</tr>"


def _perplexity(group: Group, state: str) -> str:
    value = group.mean(lambda run: run.value(state, METRIC))
    if value is None:
        return "-"
    deviation = group.deviation(lambda run: run.value(state, METRIC))
    text = format_metric(value, 2, large=short)
    return f"{text} ± {deviation:.2f}" if deviation else text
