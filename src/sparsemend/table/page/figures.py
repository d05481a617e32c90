"""The figures of the report page: each turns groups of runs into HTML, or into nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from sparsemend.names import METRIC
from sparsemend.result.runs import RunRecord
from sparsemend.table.grouping import Group, knobs, ours_of
from sparsemend.table.page.groups import (
    STAGES,
    block_errors,
    block_values,
    curve,
    difference_of,
    names,
    peak_bytes,
    styles,
    supports,
    with_unrepaired,
)
from sparsemend.table.page.svg import COLOURS, Series, bar_chart, heat_map, legend, line_chart

DIFFERENCE = "sparsity_schedule.common_difference"
LOSSES = {"Training loss": "train/loss", "Validation loss": "validation/loss"}
MOST = 16  # lines or rows of one chart; more cannot be told apart
WIDE = 6.0  # ratio of values from which an axis is logarithmic


def perplexity_by_sparsity(groups: Sequence[Group]) -> str:
    """A line per method over sparsities; bars where all runs share one sparsity.

    Runs that vary ATP's common difference have a chart of their own.
    """
    lines: dict[tuple[str, str], Series] = {}
    groups = with_unrepaired(groups)
    for group, (colour, _) in zip(groups, styles(groups), strict=True):
        mean = group.metric(METRIC)
        if mean is None or DIFFERENCE in group.settings:
            continue
        pattern = "" if group.row.pattern == "unstructured" else f"  {group.row.pattern}"
        name = _with_model(group.series + pattern, group, groups)
        before = lines.get((group.model, name), Series(name, []))
        deviation = group.metric_deviation(METRIC)
        points = [*before.points, (group.row.sparsity, mean)]
        deviations = [*before.deviations, deviation]
        lines[group.model, name] = Series(name, points, deviations, colour)
    if len({sparsity for line in lines.values() for sparsity, _ in line.points}) == 1:
        rows = [(line.name, [line.points[0][1]]) for line in lines.values()]
        caption = "Test perplexity of every setting, lower is better; mean over seeds."
        caption += _left_out(rows)
        return _figure("Perplexity", caption, bar_chart(sorted(rows, key=lambda r: r[1])[:MOST]))
    caption = "Test perplexity, mean over seeds with deviation."
    title = "Perplexity against sparsity"
    return _lines(title, caption, list(lines.values()), "sparsity", "perplexity")


def sparsity_by_block(groups: Sequence[Group]) -> str:
    """A line per profile of the achieved sparsity of every block; equal profiles once."""
    profiles: dict[tuple[float, ...], str] = {}
    for group in groups:
        values = block_values(group.runs[0].result.sparsity.per_block)
        name = f"{group.row.amount}  {group.allocation}"
        profiles.setdefault(tuple(round(value, 3) for value in values), name)
    series = [
        Series(name, list(enumerate(values)), colour=index, dash=index // COLOURS)
        for index, (values, name) in enumerate(profiles.items())
    ]
    caption = (
        "Exact zeros among the weights of each block's linears; equal profiles are drawn once."
    )
    return _lines("Sparsity per block", caption, series, "block", "sparsity", whole=True)


def common_difference(groups: Sequence[Group]) -> str:
    """Perplexity against ATP's common difference, where runs vary it."""
    lines: dict[str, dict[float, list[tuple[RunRecord, float]]]] = {}
    for group in groups:
        for run in group.runs:
            at, value = difference_of(run), run.value(group.state, METRIC)
            if at is not None and value is not None:
                name = _with_model(_but_difference(group), group, groups)
                lines.setdefault(name, {}).setdefault(at, []).append((run, value))
    series: list[Series] = []
    for name, points in lines.items():
        ours = [(at, ours_of(pairs)) for at, pairs in sorted(points.items())]
        means, deviations = [(at, o.mean) for at, o in ours], [o.deviation or 0.0 for _, o in ours]
        if len(points) > 1:
            series.append(Series(name, means, deviations, colour=len(series)))
    caption = "Block rates rise by this much per block (ATP); 0 is the uniform allocation."
    return _lines("Common difference", caption, series, "common difference", "perplexity")


def reconstruction_error(groups: Sequence[Group]) -> str:
    """Relative error of every block's output, with its growth per block."""
    series = []
    groups = with_unrepaired(groups)
    for group, name, (colour, dash) in zip(groups, names(groups), styles(groups), strict=True):
        errors = [e for run in group.runs if (e := block_errors(run, group.state))]
        if errors:
            means = [sum(column) / len(errors) for column in zip(*errors, strict=True)]
            rate = group.metric("block_error/growth")
            grows = "" if rate is None else f": x{rate:.3f}"
            points = list(enumerate(means))
            series.append(Series(name + grows, points, colour=colour, dash=dash))
    caption = (
        "Distance of a block's output from the dense model's, relative to its size.  After the "
        "name, the growth per block: the slope of the line through the logarithms."
    )
    title = "Reconstruction error per block"
    return _lines(title, caption, series, "block", "relative error", whole=True)


def mask_overlap(groups: Sequence[Group]) -> str:
    """A matrix of overlaps, weights kept by both over weights kept by either.

    It compares every two settings of one model and amount.
    """
    kept = [
        ((group.model, group.row.amount), group.series, masks)
        for group in groups
        if (masks := supports(group.runs[0])) is not None
    ]
    places = [place for place, _, _ in kept]
    most = max(dict.fromkeys(places), key=places.count, default=None)
    places = [place for place in places if place == most]
    kept = [entry for entry in kept if entry[0] == most][:MOST]
    if most is None or len(kept) < 2:
        return ""
    labels = [name for _, name, _ in kept]
    values = [[1.0] * len(kept) for _ in kept]
    for i, j in itertools.combinations(range(len(kept)), 2):
        values[i][j] = values[j][i] = kept[i][2].overlap(kept[j][2])
    caption = (
        f"{most[0]} at {most[1]}: weights kept by both, as a share of those kept by either; first "
        "seed of each.  Two random supports of sparsity s would share (1 - s) / (1 + s)."
        f"{_left_out(places)}"
    )
    keys = "".join(f"<li>{escape(name)}</li>" for name in labels)
    chart = heat_map(labels, values)
    return _figure("Mask overlap", caption, f'{chart}<ol class="keys">{keys}</ol>')


def training_curves(groups: Sequence[Group]) -> str:
    """A chart of the training loss and one of the validation loss, over steps."""
    figures = []
    for title, column in LOSSES.items():
        lines = [
            Series(name, curve(group.runs[0], column), colour=colour, dash=dash)
            for group, name, (colour, dash) in zip(
                groups, names(groups), styles(groups), strict=True
            )
        ]
        kept = [line for line in lines if line.points]
        caption = "First seed of each setting."
        figures.append(_lines(title, caption, kept, "step", "loss", whole=True))
    return "".join(figures)


def costs(groups: Sequence[Group]) -> str:
    """Seconds per stage, and the highest peak memory, of every setting."""
    shown = list(zip(groups, names(groups), strict=True))[:MOST]
    seconds = [(name, [_seconds(group, stage) for stage in STAGES]) for group, name in shown]
    memory = [(name, [(group.mean(peak_bytes) or 0.0) / 2**20]) for group, name in shown]
    devices = sorted({str(r.result.provenance.device) for g in groups for r in g.runs})
    caption = f"Measured on {', '.join(devices)}; mean over seeds.{_left_out(groups)}"
    keys = legend([Series(stage, [], colour=index) for index, stage in enumerate(STAGES)])
    chart = bar_chart(seconds, unit="s", parts=STAGES)
    return _figure("Seconds per stage", caption, chart and chart + keys) + (
        _figure("Peak memory", caption, bar_chart(memory, unit="MiB"))
    )


def settings_table(groups: Sequence[Group]) -> str:
    """Every setting with the keys in which it differs from its neighbours, and its run folders."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_differences(group))}</td>"
        f"<td>{'<br>'.join(escape(str(run.folder)) for run in group.runs)}</td></tr>"
        for group, name in zip(groups, names(groups), strict=True)
    )
    head = "<tr><th>setting</th><th>differs in</th><th>runs</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _differences(group: Group) -> str:
    return ", ".join(f"{key}={value}" for key, value in group.settings.items()) or "-"


def _seconds(group: Group, stage: str) -> float:
    return group.mean(lambda run: run.seconds(stage)) or 0.0


def _but_difference(group: Group) -> str:
    """A setting's name without ATP's common difference."""
    row = group.row
    method = "" if row.method == "none" else f" + {row.method}"
    settings = {key: value for key, value in group.settings.items() if key != DIFFERENCE}
    return f"{row.amount}  {row.pruner}{method}{group.variant}{knobs(settings)}"


def _with_model(name: str, group: Group, groups: Sequence[Group]) -> str:
    return f"{group.model}  {name}" if len({other.model for other in groups}) > 1 else name


def _left_out(shown: Sequence[object]) -> str:
    return f"  The first {MOST} of {len(shown)}." if len(shown) > MOST else ""


def _lines(
    title: str, caption: str, series: Sequence[Series], x: str, y: str, *, whole: bool = False
) -> str:
    """A figure of at most MOST lines; its caption says where others are left out."""
    if not series:
        return ""
    shown = _apart(series[:MOST])
    values = [b for line in shown for _, b in line.points]
    log = min(values) > 0 and max(values) / min(values) > WIDE
    caption += _left_out(series) + ("  Logarithmic axis." if log else "")
    chart = line_chart(shown, x=x, y=y, log=log, whole=whole)
    return _figure(title, caption, chart and chart + legend(shown))


def _apart(series: Sequence[Series]) -> list[Series]:
    """The lines, each in a colour of its own where there are enough and some share one."""
    colours = {line.colour % COLOURS for line in series}
    if len(colours) == len(series) or len(series) > COLOURS:
        return list(series)
    return [replace(line, colour=index) for index, line in enumerate(series)]


def _figure(title: str, caption: str, inside: str) -> str:
    if not inside:
        return ""
    return f"<figure><figcaption><b>{title}</b>{escape(caption)}</figcaption>{inside}</figure>"
