"""A paper table as Markdown, LaTeX (booktabs) and CSV.

Marks: + a run whose sources were not exactly a commit, 1 a single seed, ~ a published number of
another model or protocol, or of a pruner not stated, so that no difference to it is taken, s a
second-hand number.  `-` is unknown.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from sparsemend.names import METRIC
from sparsemend.result.format import format_metric
from sparsemend.result.runs import Row
from sparsemend.table.paper_table import Change, Line, PaperTable
from sparsemend.table.published import UNKNOWN

DIRTY, SINGLE, OTHER, SECOND_HAND = "+", "1", "~", "s"
MARKS = {
    DIRTY: "a run of uncommitted sources",
    SINGLE: "a single seed",
    OTHER: "no difference taken: another model or protocol than ours, or a pruner not stated",
    SECOND_HAND: "second-hand: reported by another paper than the method's own, or by a rerun",
}
SELECTED = (
    f"of a row's several settings these differences take that of the lowest {METRIC}, selected by "
    "the text that is reported, as in ATP's paper"
)
THEIRS = (OTHER, SECOND_HAND)  # marks of the published number, not of ours
LATEX_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}"})
CSV_COLUMNS: dict[str, Callable[[PaperTable, Line], object]] = {
    "table": lambda table, line: table.title,
    "metric": lambda table, line: table.metric,
    "text": lambda table, line: line.protocol.text,
    "split": lambda table, line: line.protocol.split,
    "seqlen": lambda table, line: line.protocol.seqlen,
    "dtype": lambda table, line: line.protocol.dtype,
    "model": lambda table, line: line.model,
    "sparsity": lambda table, line: line.row.sparsity,
    "pattern": lambda table, line: line.row.pattern,
    "pruner": lambda table, line: line.row.pruner,
    "schedule": lambda table, line: line.row.schedule,
    "method": lambda table, line: line.row.method,
    "variant": lambda table, line: line.row.variant,
    "settings": lambda table, line: line.settings or UNKNOWN,
    "mean": lambda table, line: line.ours.mean,
    "deviation": lambda table, line: _or_unknown(line.ours.deviation),
    "seeds": lambda table, line: len(line.ours.values),
    "runs": lambda table, line: line.ours.runs,
    "dirty": lambda table, line: str(line.ours.dirty).lower(),
    "published": lambda table, line: line.theirs.shown_value if line.theirs else UNKNOWN,
    "published_deviation": lambda table, line: (
        line.theirs.shown_deviation if line.theirs else UNKNOWN
    ),
    "published_model": lambda table, line: line.theirs.model if line.theirs else UNKNOWN,
    "published_seqlen": lambda table, line: line.theirs.seqlen if line.theirs else UNKNOWN,
    "difference": lambda table, line: _or_unknown(line.difference),
    "source": lambda table, line: line.theirs.source if line.theirs else UNKNOWN,
    "mark": lambda table, line: line.theirs.mark if line.theirs else UNKNOWN,
    "reporter": lambda table, line: line.theirs.reporter if line.theirs else UNKNOWN,
}


def models(table: PaperTable) -> list[str]:
    """Models with a column of their own, in order of their lines."""
    return list(dict.fromkeys(line.model for line in table.lines))


def headings(table: PaperTable) -> list[str]:
    """Column heads: those that name a row, then ours, paper, difference and runs of every model."""
    heads = ["sparsity", "row", *(["setting"] if _settings(table) else [])]
    for model in models(table):
        heads += [model, *_paper_headings(table, model), "runs"]
    return heads


def body(table: PaperTable) -> list[list[str]]:
    """The rows as text, one per row and setting."""
    rows = dict.fromkeys((line.row, line.settings) for line in table.lines)
    return [_cells(table, row, settings) for row, settings in rows]


def markdown(table: PaperTable) -> str:
    """A Markdown table under its title, protocol, marks and sources below it."""
    left = 3 if _settings(table) else 2
    return markdown_table(table.title, headings(table), body(table), left, notes(table))


def latex(table: PaperTable) -> str:
    r"""The table as a LaTeX tabular; needs \usepackage{booktabs}."""
    left = 3 if _settings(table) else 2
    return latex_table(headings(table), body(table), left, notes(table))


def markdown_table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int,
    below: Sequence[str],
) -> str:
    """A Markdown table under its title, notes below it; the first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    lines = [f"### {title}", "", _line(heads), _line(rule), *(_line(cells) for cells in rows)]
    return "\n".join([*lines, "", *(f"{note}  " for note in below)]) + "\n"


def latex_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: int, below: Sequence[str]
) -> str:
    """A LaTeX tabular, notes below it as comments; the first `left` columns are text."""
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(heads) - left)}}}",
        r"\toprule",
        _tex(heads),
        r"\midrule",
        *(_tex(cells) for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in below),
    ]
    return "\n".join(lines) + "\n"


def comma_separated(tables: Sequence[PaperTable]) -> str:
    """Every line of every table in long form, with source and mark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for line in table.lines:
            writer.writerow([column(table, line) for column in CSV_COLUMNS.values()])
    return out.getvalue()


def notes(table: PaperTable) -> list[str]:
    """The lines below a table: protocol, meaning of the marks that occur, sources, changes."""
    used = {mark for line in table.lines for mark in marks_of(line)}
    marks = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used]
    return [
        *(f"ours: {label}" for label in _labels(table)),
        "mean ± sample deviation over seeds",
        *(["; ".join(marks)] if marks else []),
        *(f"paper: {source}" for source in table.sources),
        *(_change(change) for change in table.changes),
        *([SELECTED] if any(change.selected for change in table.changes) else []),
    ]


def ours(line: Line) -> str:
    """Our number as text, `18.55 ± 0.02`, with marks."""
    shown = format_metric(line.ours.mean, 3)
    if line.ours.deviation is not None:
        shown += f" ± {format_metric(line.ours.deviation, 3)}"
    marks = "".join(mark for mark in marks_of(line) if mark not in THEIRS)
    return f"{shown} ({marks})" if marks else shown


def marks_of(line: Line) -> list[str]:
    """The marks that a line carries, in the order of MARKS."""
    carried = {
        DIRTY: line.ours.dirty,
        SINGLE: line.ours.deviation is None,
        OTHER: line.theirs is not None and not line.comparable,
        SECOND_HAND: line.theirs is not None and line.theirs.second_hand,
    }
    return [mark for mark in MARKS if carried[mark]]


def _paper_headings(table: PaperTable, model: str) -> list[str]:
    lines = [line for line in table.lines if line.model == model and line.theirs]
    if not lines:
        return []
    published_models = dict.fromkeys(line.theirs.model for line in lines if line.theirs)
    reference = next(iter(published_models))
    return ["paper" if reference == model else f"paper ({reference})", "difference"]


def _cells(table: PaperTable, row: Row, settings: str) -> list[str]:
    cells = [row.amount if row.pruner != "none" else UNKNOWN, _name(row)]
    if _settings(table):
        cells.append(settings or UNKNOWN)
    for model in models(table):
        same = [k for k in table.lines if (k.model, k.row, k.settings) == (model, row, settings)]
        cells += _of_model(same[0] if same else None, bool(_paper_headings(table, model)))
    return cells


def _of_model(line: Line | None, paper: bool) -> list[str]:
    if line is None:
        return [UNKNOWN, *([UNKNOWN, UNKNOWN] if paper else []), UNKNOWN]
    theirs = UNKNOWN
    if line.theirs is not None:
        carried = "".join(mark for mark in marks_of(line) if mark in THEIRS)
        theirs = line.theirs.shown + (f" ({carried})" if carried else "")
    difference = UNKNOWN if line.difference is None else f"{line.difference:+.3f}"
    return [ours(line), *([theirs, difference] if paper else []), str(line.ours.runs)]


def _labels(table: PaperTable) -> list[str]:
    """Every protocol's label once, with its model where protocols differ."""
    labels = [protocol.label for protocol in table.protocols.values()]
    if len(set(labels)) == 1:
        return labels[:1]
    return [f"{model}, {protocol.label}" for model, protocol in table.protocols.items()]


def _change(change: Change) -> str:
    theirs = change.theirs
    other = "" if change.comparable else f" on {theirs.model}, {theirs.seqlen} tokens"
    unknown = f"unknown (without {METRIC} no setting is selected)"
    ours = unknown if change.ours is None else f"{change.ours:+.3f}"
    return (
        f"{theirs.variant}: ours {ours} on {change.model}, "
        f"paper {theirs.value}{other} ({theirs.source})"
    )


def _name(row: Row) -> str:
    return row.label if row.variant == UNKNOWN else f"{row.label} ({row.variant})"


def _settings(table: PaperTable) -> bool:
    return any(line.settings for line in table.lines)


def _or_unknown(value: float | None) -> object:
    return UNKNOWN if value is None else value


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _tex(texts: Sequence[str]) -> str:
    escaped = (text.translate(LATEX_ESCAPES).replace("±", r"$\pm$") for text in texts)
    return " & ".join(escaped) + r" \\"
