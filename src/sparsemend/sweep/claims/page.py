"""The pages of claims: one of each with its picture and its numbers, and an index of all verdicts.

`write` leaves <claim>.md, .png and .csv in a folder, and README.md, which lists the verdicts of
every <claim>.csv there, so that claims may be measured and written at different times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemend.files import replacing, write_text
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.format import LARGE, format_metric
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.arena.interval import LEVEL
from sparsemend.sweep.claims.claim import Claim, Comparison, Judged
from sparsemend.sweep.claims.equality import unequal_budget
from sparsemend.sweep.claims.facts import MeasuredState
from sparsemend.sweep.claims.index import INDEX, check_index, index, table
from sparsemend.sweep.claims.origin import origin, progress_lines
from sparsemend.sweep.claims.published import published_lines
from sparsemend.sweep.claims.side import Chosen
from sparsemend.sweep.claims.statements import MEASURES
from sparsemend.sweep.claims.verdict_line import gain_text, verdict_lines
from sparsemend.table.evolution import MOMENTS, mean_rounds
from sparsemend.table.formats import markdown_table

SUFFIXES = (".md", ".csv", ".png")


def write(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Write the pages of claims and the index into `folder`; return the paths.

    Raises ValueError where a README.md of another kind lies there.
    """
    from sparsemend.sweep.claims.plot import draw

    check_index(folder)
    paths = []
    for claim in claims:
        if not claim.judged:
            for suffix in SUFFIXES:  # of cells that are there no more
                (folder / f"{claim.name}{suffix}").unlink(missing_ok=True)
            continue
        write_text(folder / f"{claim.name}.md", page(claim))
        write_text(folder / f"{claim.name}.csv", table(claim))
        with replacing(folder / f"{claim.name}.png") as partial:
            draw(claim.judged, partial)
        paths += [folder / f"{claim.name}{suffix}" for suffix in SUFFIXES]
    write_text(folder / INDEX, index(folder))
    return [*paths, folder / INDEX]


def page(claim: Claim) -> str:
    """The Markdown page of one claim."""
    lines = [f"# What is claimed of {claim.name}, measured", ""]
    lines += [f"* {line}" for line in verdict_lines(claim, mark="**")]
    lines += ["", *progress_lines(claim), ""]
    lines += [f"![every comparison with its interval]({claim.name}.png)", ""]
    for one in claim.judged:
        lines += _statement(one)
    if claim.chosen:
        lines += [_choices(claim.chosen), ""]
    return "\n".join([*lines, *_rounds(claim), *origin(claim), ""])


def _statement(one: Judged) -> list[str]:
    statement = one.statement
    heads = [
        "setting",
        "ours",
        "rival",
        "ours / rival",
        "interval",
        "seeds",
        "collapsed",
        "verdict",
        "published",
    ]
    rows = [_row(one, comparison) for comparison in one.comparisons]
    notes = [
        f"source of the claim: {statement.source}",
        f"measure: {MEASURES[statement.measure]}; holds where the whole {LEVEL:.0%} interval is "
        f"below {statement.at_most:g}, does not where it is above; over settings only where none "
        "says the contrary, else it is mixed",
        *(f"published: {line}" for line in published_lines(statement)),
        *_gain_notes(one),
        *_collapse_notes(one),
        *_repeats(one),
        *_unequal(one),
    ]
    title = f"{statement.says} ({one.model}, {one.text})"
    return [markdown_table(title, heads, rows, 1, notes), ""]


def _gain_notes(one: Judged) -> list[str]:
    """A line per setting of the side of whose gain ours is to keep a share."""
    lines = []
    for c in one.comparisons:
        if c.bound is None or c.gain is None:
            continue
        runs = [state.run for state in c.bound.by_seed.values()]
        beyond = max(int(run.result.repair.diagnostics.get("beyond_budget", 0)) for run in runs)
        denser = f", {beyond:,} weights beyond the budget: no sparse model" * bool(beyond)
        mean = c.mean(c.bound, one.statement.measure)
        lines.append(f"{c.setting.label}: {c.bound.name} has {mean}{denser}; {gain_text(c.gain)}")
    return lines


def _collapse_notes(one: Judged) -> list[str]:
    if not any(one.collapses[:2]):
        return []
    return [
        f"collapsed: a perplexity that is not finite or at least {LARGE:g}, or a training that "
        "ended in one; beside a side that did not, it is held against the one that did, and takes "
        "away a verdict to the contrary"
    ]


def _repeats(one: Judged) -> list[str]:
    """A line per cell that a later one of the same configuration, but another result, replaces."""
    lines = []
    for c in one.comparisons:
        for name, side in {"ours": c.ours, "the rival": c.rival}.items():
            for state in side.earlier:
                seed = state.run.seed
                before, last = (_cell(one, cell) for cell in (state, side.by_seed[seed]))
                if before.partition(" in ")[0] != last.partition(" in ")[0]:
                    lines.append(
                        f"{c.setting.label}, seed {seed}: {name} measured again, {before} and "
                        f"{last}; the last counts"
                    )
    return lines


def _cell(one: Judged, state: MeasuredState) -> str:
    """`457.893 in cell 4 (1 thread)`"""
    threads = state.run.result.provenance.threads
    value = format_metric(state.value(one.statement.measure), 3)
    return f"{value} in cell {state.run.folder.name} ({threads} thread{'s' * (threads != 1)})"


def _unequal(one: Judged) -> list[str]:
    """A line per setting whose sides are not equally sparse, or had no equal budget."""
    lines = []
    for c in one.comparisons:
        sides = {"ours": c.ours, "the rival": c.rival}
        counted = [
            (f"{name} (seed {seed})", state.run.result.sparsity)
            for name, side in sides.items()
            for seed, state in side.by_seed.items()
        ]
        results = ((name, counts.target, counts.achieved) for name, counts in counted)
        lines += [f"{c.setting.label}: {line}" for line in unequal_sparsities(results)]
        every = [state for side in c.named_sides.values() for state in side.by_seed.values()]
        if line := unequal_budget(every):
            lines.append(f"{c.setting.label}: {line}")
    return lines


def _row(one: Judged, comparison: Comparison) -> list[str]:
    effect, published = comparison.effect, comparison.published
    measure = one.statement.measure
    return [
        comparison.setting.label,
        *(comparison.mean(side, measure) for side in (comparison.ours, comparison.rival)),
        "-" if effect is None else f"{effect.mean:.3f}",
        "-" if effect is None else f"{effect.low:.3f} - {effect.high:.3f}",
        ", ".join(map(str, comparison.seeds)) or "-",
        _collapsed_text(comparison),
        comparison.verdict,
        "-" if published is None else published.text,
    ]


def _collapsed_text(comparison: Comparison) -> str:
    """`ours 1 of 3`, `-` where no model collapsed."""
    counts = {"ours": comparison.collapsed, "rival": comparison.rival_collapsed}
    parts = [
        f"{name} {len(seeds)} of {comparison.pairs}" for name, seeds in counts.items() if seeds
    ]
    return ", ".join(parts) or "-"


def _choices(chosen: Sequence[Chosen]) -> str:
    key = chosen[0].key
    heads = ["side", "setting", "tried", "chosen", "between", "by test", "gap", "interval"]
    heads += ["minutes"]
    rows = [
        [
            choice.side,
            f"{choice.setting.label}, {choice.setting.text}",
            f"{len(choice.validation)}",
            f"{choice.value:.4g}{' (edge)' if choice.at_edge else ''}",
            "-" if choice.between is None else "{:.2g} (x {:.3f})".format(*choice.between),
            f"{choice.by_test:.4g}",
            "-" if choice.gap is None else f"{choice.gap.mean:.4f}",
            "-" if choice.gap is None else f"{choice.gap.low:.4f} - {choice.gap.high:.4f}",
            f"{choice.seconds / 60:.1f}",
        ]
        for choice in chosen
    ]
    notes = [
        "tried: values, each a run on the first seed; chosen: by validation, for every seed; edge: "
        "the lowest or highest that was tried, so that a better one may lie beyond",
        "between: where a parabola through the chosen value and its neighbours is lowest, and what "
        "its validation perplexity would be over that of the chosen one: an estimate of what a "
        "finer grid gains; an effect of this size is no more than the grid's",
        "gap: test perplexity of the chosen value over that of the value that the test text would "
        "have chosen, which is what choosing by the reported text hides",
    ]
    return markdown_table(f"What validation chose: {key}", heads, rows, 2, notes)


def _rounds(claim: Claim) -> list[str]:
    """The losses around every round of moving zeros, of sides whose runs measured them."""
    sides: dict[str, list[RunRecord]] = {}
    for one in claim.judged:
        for c in one.comparisons:
            for name, side in c.named_sides.items():
                label = f"{name}, {c.setting.label}" if len(one.comparisons) > 1 else name
                sides.setdefault(label, [state.run for state in side.by_seed.values()])
    rows = [
        [label, str(step), *(f"{loss:.4f}" for loss in losses)]
        for label, runs in sides.items()
        for step, losses in mean_rounds([run.result.repair.diagnostics for run in runs])
    ]
    if not rows:
        return []
    heads = ["side", "step", *MOMENTS.values()]
    note = "validation loss around every round of moving zeros, mean over seeds"
    return [markdown_table("rounds", heads, rows, 1, [note]), ""]
