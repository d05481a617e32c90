"""The pages of claims: one of each with its picture and its numbers, and an index of all verdicts.

`write` leaves <claim>.md, .png and .csv in a folder, and README.md, which lists the verdicts of
every <claim>.csv there, so that claims may be measured and written at different times.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sparsemend.files import replacing, write_text
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.format import format_metric
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.arena.bootstrap import LEVEL, RESAMPLES, Ratio
from sparsemend.sweep.claims.facts import MeasuredState, dense_perplexity
from sparsemend.sweep.claims.published import published_lines
from sparsemend.sweep.claims.read import Chosen, Claim, Comparison, Judged
from sparsemend.sweep.claims.statements import MEASURES
from sparsemend.sweep.claims.verdict import FAILS, HOLDS, OPEN
from sparsemend.sweep.read import overrides_of
from sparsemend.table.formats import markdown_table

INDEX = "README.md"
CSV_COLUMNS = (
    *("claim", "says", "model", "text", "setting", "measure", "at_most", "ours", "rival"),
    *("effect", "low", "high", "seeds", "verdict", "published", "hours"),
)
ALL = "all settings"
UNITS = {"peak_bytes": 2**20}


def write(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write the pages of claims and the index into `folder`; return the paths."""
    from sparsemend.sweep.claims.plot import draw

    paths = []
    for claim in claims:
        if not claim.judged:
            continue
        write_text(folder / f"{claim.name}.md", page(claim))
        write_text(folder / f"{claim.name}.csv", table(claim))
        with replacing(folder / f"{claim.name}.png") as partial:
            draw(claim.judged, partial)
        paths += [folder / f"{claim.name}{suffix}" for suffix in (".md", ".csv", ".png")]
    write_text(folder / INDEX, index(folder))
    return [*paths, folder / INDEX]


def verdict_lines(claim: Claim) -> list[str]:
    """A line per statement and text: the verdict, the effect, and how settings differ."""
    return [_verdict_line(one) for one in claim.judged]


def _verdict_line(one: Judged) -> str:
    counts = Counter(c.verdict for c in one.comparisons)
    parts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.most_common())
    settings = f"{len(one.comparisons)} setting{'s' * (len(one.comparisons) > 1)}: {parts}"
    overall = (
        "no seed has every setting"
        if one.effect is None
        else (
            f"{one.verdict}, x {_interval(one.effect)} over seed{'s' * (len(one.seeds) > 1)} "
            f"{', '.join(map(str, one.seeds))}"
        )
    )
    return f"{one.statement.says} ({one.model}, {one.text}): {overall}; {settings}"


def page(claim: Claim) -> str:
    """The Markdown page of one claim."""
    lines = [f"# What is claimed of {claim.name}, measured", ""]
    lines += [
        f"* {_bold(line, one)}"
        for line, one in zip(verdict_lines(claim), claim.judged, strict=True)
    ]
    lines += ["", f"![every comparison with its interval]({claim.name}.png)", ""]
    for one in claim.judged:
        lines += _statement(one)
    if claim.chosen:
        lines += [_choices(claim.chosen), ""]
    return "\n".join([*lines, *_origin(claim), ""])


def _bold(line: str, one: Judged) -> str:
    return line if one.verdict is None else line.replace(one.verdict, f"**{one.verdict}**", 1)


def _statement(one: Judged) -> list[str]:
    statement = one.statement
    heads = [
        "setting",
        "ours",
        "rival",
        "ours / rival",
        "interval",
        "seeds",
        "verdict",
        "published",
    ]
    rows = [_row(one, comparison) for comparison in one.comparisons]
    notes = [
        f"source of the claim: {statement.source}",
        f"measure: {MEASURES[statement.measure]}; holds where the whole {LEVEL:.0%} interval is "
        f"below {statement.at_most:g}, does not where it is above",
        *(f"published: {line}" for line in published_lines(statement)),
        *_unequal(one),
    ]
    title = f"{statement.says} ({one.model}, {one.text})"
    return [markdown_table(title, heads, rows, 1, notes), ""]


def _unequal(one: Judged) -> list[str]:
    """A line per setting whose sides are not equally sparse."""
    lines = []
    for c in one.comparisons:
        sides = {"ours": c.ours, "the rival": c.rival}
        counted = [
            (f"{name} (seed {seed})", state.run.result.sparsity)
            for name, side in sides.items()
            for seed, state in side.items()
        ]
        results = ((name, counts.target, counts.achieved) for name, counts in counted)
        lines += [f"{c.setting.label}: {line}" for line in unequal_sparsities(results)]
    return lines


def _row(one: Judged, comparison: Comparison) -> list[str]:
    effect = comparison.effect
    published = comparison.published
    return [
        comparison.setting.label,
        *(_mean(one, side.values()) for side in (comparison.ours, comparison.rival)),
        f"{effect.mean:.3f}",
        f"{effect.low:.3f} - {effect.high:.3f}",
        ", ".join(map(str, comparison.seeds)),
        comparison.verdict,
        "-" if published is None else published.text,
    ]


def _mean(one: Judged, states: Iterable[MeasuredState]) -> str:
    measure = one.statement.measure
    values = [state.value(measure) for state in states]
    numbers = [value for value in values if value is not None]
    return format_metric(statistics.fmean(numbers) / UNITS.get(measure, 1), 3) if numbers else "-"


def _choices(chosen: Sequence[Chosen]) -> str:
    key = chosen[0].key
    heads = ["side", "setting", "tried", "chosen", "by test", "gap", "interval", "minutes"]
    rows = [
        [
            choice.side,
            f"{choice.setting.label}, {choice.setting.text}",
            f"{len(choice.validation)}",
            f"{choice.value:.4g}{' (edge)' if choice.at_edge else ''}",
            f"{choice.by_test:.4g}",
            "-" if choice.gap is None else f"{choice.gap.mean:.4f}",
            "-" if choice.gap is None else f"{choice.gap.low:.4f} - {choice.gap.high:.4f}",
            f"{choice.seconds / 60:.1f}",
        ]
        for choice in chosen
    ]
    notes = [
        "tried: values, each a run on the first seed; chosen: by validation, for every seed; edge: "
        "the lowest or highest that finished, so that a better one may lie beyond",
        "gap: test perplexity of the chosen value over that of the value that the test text would "
        "have chosen, which is what choosing by the reported text hides",
    ]
    return markdown_table(f"What validation chose: {key}", heads, rows, 2, notes)


def _origin(claim: Claim) -> list[str]:
    runs = claim.runs
    provenance = [run.result.provenance for run in runs]
    commits = sorted({str(p.commit)[:10] for p in provenance})
    machines = sorted({f"{p.platform}, {p.device}, {p.threads} threads" for p in provenance})
    torch = sorted({str(p.packages.get("torch")) for p in provenance})
    state = ", some runs of uncommitted sources" if any(run.dirty for run in runs) else ""
    texts = dict.fromkeys((one.model, one.text) for one in claim.judged)
    dense = [
        f"{model} on {text} {format_metric(dense_perplexity(runs, text), 3)}"
        for model, text in texts
    ]
    return [
        "## Where it comes from",
        "",
        "```bash",
        *_commands(claim),
        "```",
        "",
        f"{len(runs)} cells, {hours(runs):.1f} hours; commit {', '.join(commits)}{state}; torch "
        f"{', '.join(torch)}; {'; '.join(machines)}.  Dense perplexity: {', '.join(dense)}.",
        f"Intervals: {RESAMPLES:,} paired resamples of seeds and test windows; of one number a run "
        "(seconds, bytes) of seeds alone.  Few seeds make them narrow.",
    ]


def _commands(claim: Claim) -> list[str]:
    """The commands that make the cells anew: one for each set of overrides that no part swept.

    What a command has of its experiment's own sweep is left out.
    """
    parts: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for run in claim.runs:
        pairs = [line.partition("=")[::2] for line in overrides_of(run.folder)]
        pairs = [(key, value) for key, value in pairs if key not in (claim.chosen_key, "resume")]
        same = tuple(f"{key}={value}" for key, value in pairs if key not in claim.swept)
        swept = parts.setdefault(same, {})
        for key, value in pairs:
            values = swept.setdefault(key, []) if key in claim.swept else [value]
            if value not in values:
                values.append(value)
    return [
        shlex.join(["sparsemend", "-m", *_experiment_first(same), *_other_than(claim, swept)])
        for same, swept in parts.items()
    ]


def _experiment_first(lines: Sequence[str]) -> list[str]:
    return sorted(lines, key=lambda line: not line.startswith("experiment="))


def _other_than(claim: Claim, swept: Mapping[str, Sequence[str]]) -> list[str]:
    """The swept keys whose values are not all those that the experiment sweeps."""
    return [
        f"{key}={','.join(sorted(values))}"
        for key, values in swept.items()
        if set(values) != set(claim.swept[key].split(","))
    ]


def hours(runs: Sequence[RunRecord]) -> float:
    """Hours that the runs took one after the other."""
    return sum(run.result.seconds or 0.0 for run in runs) / 3600


def table(claim: Claim) -> str:
    """The comparisons of a claim as CSV, each statement's over all settings first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in claim.judged:
        statement = one.statement
        front = (claim.name, statement.says, one.model, one.text)
        rule = (statement.measure, statement.at_most)
        took = f"{hours(claim.runs):.2f}"
        if one.effect is not None:
            figures = _figures(one.effect, one.seeds)
            writer.writerow([*front, ALL, *rule, "", "", *figures, one.verdict, "", took])
        for c in one.comparisons:
            means = [_mean(one, side.values()) for side in (c.ours, c.rival)]
            ratio = "" if c.published is None else f"{c.published.ratio:.4f}"
            figures = _figures(c.effect, c.seeds)
            writer.writerow(
                [*front, c.setting.label, *rule, *means, *figures, c.verdict, ratio, took]
            )
    return out.getvalue()


def _figures(effect: Ratio, seeds: Sequence[int]) -> list[str]:
    numbers = [f"{value:.5f}" for value in (effect.mean, effect.low, effect.high)]
    return [*numbers, " ".join(map(str, seeds))]


def index(folder: Path) -> str:
    """The page of all verdicts, from the .csv of every claim in a folder."""
    heads = ["claim", "says", "model, text", "verdict", "effect", "settings", "hours"]
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lines = list(reader) if tuple(reader.fieldnames or ()) == CSV_COLUMNS else []
        keys = dict.fromkeys((line["says"], line["model"], line["text"]) for line in lines)
        for key in keys:
            same = [x for x in lines if (x["says"], x["model"], x["text"]) == key]
            rows.append(_index_row(path.stem, key, same))
    notes = [
        "effect: ours over the rival, perplexity unless the sentence says otherwise, with its "
        f"paired {LEVEL:.0%} interval over seeds and test windows; below 1 is as the paper says",
        f"verdict: {HOLDS} / {FAILS} / {OPEN}, by the rule that the yaml of "
        "the claim states; over all settings, and how many settings hold, do not, are open",
    ]
    return markdown_table("What the papers claim, measured here", heads, rows, 3, notes) + "\n"


def _index_row(claim: str, key: tuple[str, str, str], lines: Sequence[dict[str, str]]) -> list[str]:
    overall = next((line for line in lines if line["setting"] == ALL), None)
    settings = [line for line in lines if line["setting"] != ALL]
    counts = Counter(line["verdict"] for line in settings)
    shown = overall or (settings[0] if len(settings) == 1 else None)
    effect = (
        "-"
        if shown is None
        else (
            f"{float(shown['effect']):.3f} ({float(shown['low']):.3f} - {float(shown['high']):.3f})"
        )
    )
    return [
        f"[{claim}]({claim}.md)",
        key[0],
        f"{key[1]}, {key[2]}",
        "-" if shown is None else f"**{shown['verdict']}**",
        effect,
        " / ".join(str(counts[verdict]) for verdict in (HOLDS, FAILS, OPEN)),
        lines[0]["hours"],
    ]


def _interval(effect: Ratio) -> str:
    return f"{effect.mean:.3f} ({effect.low:.3f} - {effect.high:.3f})"
