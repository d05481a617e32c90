"""The pages of claims: one of each with its picture and its numbers, and an index of all verdicts.

`write` leaves <claim>.md, .png and .csv in a folder, and README.md, which lists the verdicts of
every <claim>.csv there, so that claims may be measured and written at different times.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsemend.files import replacing, write_text
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.format import format_metric
from sparsemend.sweep.arena.bootstrap import LEVEL, RESAMPLES, Ratio
from sparsemend.sweep.claims.claim import Chosen, Claim, Comparison, Judged
from sparsemend.sweep.claims.facts import dense_perplexity
from sparsemend.sweep.claims.index import INDEX, index, table
from sparsemend.sweep.claims.published import published_lines
from sparsemend.sweep.claims.statements import MEASURES
from sparsemend.sweep.read import overrides_of
from sparsemend.table.formats import markdown_table


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
    effect, published = comparison.effect, comparison.published
    measure = one.statement.measure
    return [
        comparison.setting.label,
        *(comparison.mean(side, measure) for side in (comparison.ours, comparison.rival)),
        f"{effect.mean:.3f}",
        f"{effect.low:.3f} - {effect.high:.3f}",
        ", ".join(map(str, comparison.seeds)),
        comparison.verdict,
        "-" if published is None else published.text,
    ]


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
        f"{len(runs)} cells, {claim.hours:.1f} hours; commit {', '.join(commits)}{state}; torch "
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


def _interval(effect: Ratio) -> str:
    return f"{effect.mean:.3f} ({effect.low:.3f} - {effect.high:.3f})"
