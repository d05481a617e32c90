"""The table of an experiment whose jobs differ in `variant`, learning rate and seed.

Every variant is judged at the learning rate of its lowest validation loss with the first seed, and
compared with the first variant window by window (the arena's paired bootstrap).  A Hydra callback
that an experiment adds beside the sweeper of variants, as conf/experiment/seft_control.yaml does.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from sparsemend.files import write_text
from sparsemend.names import METRIC, TASK_METRIC, weights_of
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.arena.bootstrap import Ratio, perplexity_ratio
from sparsemend.sweep.claims.equality import check_side, check_sides
from sparsemend.sweep.claims.facts import MeasuredState
from sparsemend.sweep.read import wide_console
from sparsemend.sweep.variants.sweeper import RATE, VALIDATION
from sparsemend.table.formats import markdown_table

log = logging.getLogger(__name__)

STEM = "variants"
HEADINGS = (
    *("variant", "rate", "validation", "perplexity", "x first", "95 % interval"),
    *("sparsity", "beyond budget", "trained", "seconds"),
)
ROUND_HEADINGS = ("variant", "step", "before", "after the move", "after pruning")
MOMENTS = ("loss_before", "loss_moved", "loss_settled")  # of a round that measured its loss


@dataclass(frozen=True)
class Variant:
    """One variant at its chosen rate: a run per seed, and what every rate gave the first seed."""

    name: str
    rate: float
    runs: tuple[RunRecord, ...]  # by seed
    validation: Mapping[float, float]  # rate -> validation loss with the first seed

    @property
    def metric(self) -> str:
        """The perplexity that is compared: of the task where there is one, else of the text."""
        return TASK_METRIC if self._values(TASK_METRIC) else METRIC

    @property
    def perplexities(self) -> list[float]:
        return self._values(self.metric)

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the lowest or highest of several."""
        rates = sorted(self.validation)
        return len(rates) > 1 and self.rate in (rates[0], rates[-1])

    @property
    def beyond_budget(self) -> int:
        """The weights, most of a seed, that the model keeps beyond those that were pruned for."""
        return max(int(run.result.repair.diagnostics.get("beyond_budget", 0)) for run in self.runs)

    def losses(self) -> np.ndarray | None:
        """Losses (S, W) of the test windows; None where a run stored none."""
        read = [read_losses(run.folder, "repaired", self.metric) for run in self.runs]
        arrays = [losses for losses in read if losses is not None]
        return np.stack(arrays) if len(arrays) == len(read) else None

    def rounds(self) -> list[tuple[int, list[float]]]:
        """(step, mean loss over seeds at MOMENTS) of every round; empty where none was measured."""
        each = [run.result.repair.diagnostics.get("evolution", {}) for run in self.runs]
        records = zip(*(evolution.get("rounds", []) for evolution in each), strict=True)
        return [
            (same[0]["step"], [statistics.fmean(one[m] for one in same) for m in MOMENTS])
            for same in records
            if all(m in one for one in same for m in MOMENTS)
        ]

    def _values(self, metric: str) -> list[float]:
        values = [run.value("repaired", metric) for run in self.runs]
        return [value for value in values if value is not None]


def read_variants(folders: Sequence[Path]) -> list[Variant]:
    """The variants of the runs under `folders`, in the order of their first runs.

    Raises ValueError where there are none, where no rate of a variant has every seed, and where
    cells differ in more than seed, rate, or for two variants their method.
    """
    cells: dict[str, dict[float, dict[int, RunRecord]]] = {}
    states: dict[str, list[MeasuredState]] = {}
    for run in sorted(find_runs(folders), key=_number):
        if run.config.get("variant"):
            name = str(run.config["variant"])
            rates = cells.setdefault(name, {})
            rates.setdefault(float(run.config["method"]["learning_rate"]), {})[run.seed] = run
            states.setdefault(name, []).append(MeasuredState(run, run.row, "repaired"))
    for side in states.values():
        check_side(side, but_for=RATE)
    check_sides([state for side in states.values() for state in side])
    if not cells:
        raise ValueError(f"no finished run with a variant under {', '.join(map(str, folders))}")
    seeds = {seed for rates in cells.values() for runs in rates.values() for seed in runs}
    return [_choose(name, rates, seeds) for name, rates in cells.items()]


def _number(run: RunRecord) -> tuple[int, str]:
    name = run.folder.name
    return (int(name) if name.isdigit() else -1, str(run.folder))


def _choose(name: str, rates: Mapping[float, Mapping[int, RunRecord]], seeds: set[int]) -> Variant:
    """The variant at its rate of lowest validation loss, of the rates with every seed."""
    losses = {
        rate: float(loss)
        for rate, runs in rates.items()
        if min(seeds) in runs
        and (loss := runs[min(seeds)].result.repair.diagnostics.get(VALIDATION)) is not None
        and math.isfinite(loss)
    }
    whole = [rate for rate in losses if rates[rate].keys() == seeds]
    if not whole:
        raise ValueError(
            f"no learning rate of variant {name} has a finished run for each of the seeds "
            f"{', '.join(map(str, sorted(seeds)))}; run the sweep again in its folder"
        )
    rate = min(whole, key=lambda each: losses[each])
    return Variant(name, rate, tuple(rates[rate][seed] for seed in sorted(seeds)), losses)


def ratio_of(one: Variant, first: Variant) -> Ratio | None:
    """Perplexity of one over that of first, in pairs; None where a run stored no losses."""
    losses, others = one.losses(), first.losses()
    if losses is None or others is None:
        return None
    run = first.runs[0]
    weights = read_losses(run.folder, "repaired", weights_of(first.metric))
    return perplexity_ratio(losses, others, weights=weights)


def body(variants: Sequence[Variant]) -> list[list[str]]:
    """The cells of the table as text, a line per variant."""
    return [_line(variant, variants[0]) for variant in variants]


def _line(variant: Variant, first: Variant) -> list[str]:
    ratio = None if variant is first else ratio_of(variant, first)
    values = variant.perplexities
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    beyond = variant.beyond_budget
    runs = variant.runs
    return [
        variant.name,
        f"{variant.rate:g}{' (edge)' if variant.at_edge else ''}",
        f"{variant.validation[variant.rate]:.4f}",
        f"{statistics.fmean(values):.3f}{spread}" if values else "-",
        "-" if ratio is None else f"{ratio.mean:.4f}",
        "-" if ratio is None else f"{ratio.low:.4f} - {ratio.high:.4f}",
        f"{min(run.sparsity for run in runs):.4f}",
        f"{beyond:,}" if beyond else "-",
        f"{statistics.fmean(run.trained_parameters for run in runs):,.0f}",
        f"{statistics.fmean(run.seconds('repair') for run in runs):.1f}",
    ]


def verdict(variants: Sequence[Variant], subject: str, bound: str, most: float) -> list[str]:
    """What the intervals say of `subject` against the first variant, and of its share of `bound`'s.

    most: the ratio up to which the subject is as good as the first.  bound: the variant that shows
    what could be gained.  Empty where one of them was not run.
    """
    named = {variant.name: variant for variant in variants}
    first = variants[0]
    if subject not in named or subject == first.name:
        return []
    ratio = ratio_of(named[subject], first)
    if ratio is None:
        return []
    judged = "not told" if ratio.low <= most < ratio.high else "no" if ratio.low > most else "yes"
    lines = [
        f"{subject} / {first.name} {ratio.mean:.4f} ({ratio.low:.4f} - {ratio.high:.4f}); at most "
        f"{most:g}: {judged}"
    ]
    other = ratio_of(named[bound], first) if bound in named else None
    if other is None:
        return lines
    if other.high >= 1:
        gain = "no gain of its own that is told from none"
    else:
        share = math.log(ratio.mean) / math.log(other.mean)
        gain = f"its gain is told from none, {subject} has {share:.2f} of it"
    return [
        *lines,
        f"{bound} / {first.name} {other.mean:.4f} ({other.low:.4f} - {other.high:.4f}): {gain}",
    ]


def notes(variants: Sequence[Variant]) -> list[str]:
    """The lines below the table: setting, and how to read it."""
    first = variants[0]
    run, losses = first.runs[0], first.losses()
    windows = "" if losses is None else f", {losses.shape[1]:,} test windows"
    seeds = ", ".join(str(each.seed) for each in first.runs)
    lines = [
        f"{run.model}, {run.member('pruner')}, {run.row.amount}; {first.metric} on "
        f"{run.config['data']['name']}{windows}; seeds {seeds}",
        f"rate: of the lowest validation loss with seed {first.runs[0].seed}, of "
        + "; ".join(
            f"{v.name} " + ", ".join(f"{r:g}: {v.validation[r]:.4f}" for r in sorted(v.validation))
            for v in variants
        ),
        f"x first: ratio to {first.name}, paired over seeds and test windows (bootstrap)",
    ]
    if over := [v.name for v in variants if v.beyond_budget]:
        lines.append(f"{', '.join(over)}: denser than the others, no sparse model to be compared")
    return lines


def texts(variants: Sequence[Variant], lines: Sequence[str], title: str) -> dict[str, str]:
    """File name -> text: the table as Markdown and CSV, and in Markdown the losses of rounds."""
    cells = body(variants)
    markdown = markdown_table(title, HEADINGS, cells, 1, lines)
    rounds = [
        [v.name, str(step), *(f"{loss:.4f}" for loss in losses)]
        for v in variants
        for step, losses in v.rounds()
    ]
    if rounds:
        note = ["validation loss around every round at the chosen rate, mean over seeds"]
        markdown += "\n" + markdown_table("rounds", ROUND_HEADINGS, rounds, 1, note)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADINGS, *cells])
    return {f"{STEM}.md": markdown, f"{STEM}.csv": out.getvalue()}


class VariantsReport(Callback):
    """Shows and writes the table of the finished variants, or prints why there is none."""

    def __init__(self, *, subject: str, bound: str, most: float) -> None:
        """As of `verdict`."""
        self.subject, self.bound, self.most = subject, bound, most

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        console = wide_console()
        try:
            variants = read_variants([folder])
            below = notes(variants) + verdict(variants, self.subject, self.bound, self.most)
            written = texts(variants, below, str(config.name))
        except ValueError as error:
            console.print(str(error), markup=False, soft_wrap=True)
            return
        except Exception:  # the sweep's own report is still to come
            log.exception("no table of the variants in %s", folder)
            return
        table = Table(title=f"{config.name}")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
        for cells in body(variants):
            table.add_row(*cells)
        console.print(table)
        for line in below:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for name, text in written.items():
            write_text(folder / name, text)
            console.print(f"variants: {folder / name}", soft_wrap=True, highlight=False)
