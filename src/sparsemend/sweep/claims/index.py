"""The verdicts of claims as CSV, and the index that is made of all such files in a folder."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparsemend.sweep.arena.interval import LEVEL, Ratio
from sparsemend.sweep.claims.claim import Claim
from sparsemend.sweep.claims.verdict import FAILS, HOLDS, MIXED, OPEN
from sparsemend.table.formats import markdown_table

INDEX = "README.md"
TITLE = "What the papers claim, measured here"
CSV_COLUMNS = (
    *("claim", "says", "model", "text", "setting", "measure", "at_most", "ours", "rival"),
    *("effect", "low", "high", "seeds", "collapsed", "rival_collapsed", "verdict", "published"),
    *("measured", "planned", "hours"),
)
ALL = "all settings"


def table(claim: Claim) -> str:
    """The comparisons of a claim as CSV, each statement's over all settings first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in claim.judged:
        statement = one.statement
        front = (claim.name, statement.says, one.model, one.text)
        rule = (statement.measure, statement.at_most)
        end = [one.progress.measured, one.progress.planned, f"{claim.hours:.2f}"]
        figures = _figures(one.effect, one.seeds)
        fell = one.collapses[:2]
        writer.writerow([*front, ALL, *rule, "", "", *figures, *fell, one.verdict, "", *end])
        for c in one.comparisons:
            means = [c.mean(side, statement.measure) for side in (c.ours, c.rival)]
            ratio = "" if c.published is None else f"{c.published.ratio:.4f}"
            figures = _figures(c.effect, c.seeds)
            fell = (len(c.collapsed), len(c.rival_collapsed))
            label = c.setting.label
            writer.writerow([*front, label, *rule, *means, *figures, *fell, c.verdict, ratio, *end])
    return out.getvalue()


def _figures(effect: Ratio | None, seeds: Sequence[int]) -> list[str]:
    numbers = [] if effect is None else [effect.mean, effect.low, effect.high]
    return [*([f"{value:.5f}" for value in numbers] or [""] * 3), " ".join(map(str, seeds))]


def check_index(folder: Path) -> None:
    """Raise ValueError where `folder` has a README.md that is no index."""
    path = folder / INDEX
    if path.is_file() and TITLE not in path.read_text(encoding="utf-8").partition("\n")[0]:
        raise ValueError(f"{path} is another page than an index of claims; give --out a folder")


def index(folder: Path) -> str:
    """The page of all verdicts, from the .csv of every claim in a folder."""
    heads = [
        "claim",
        "says",
        "model, text",
        "verdict",
        "effect",
        "seeds",
        "settings",
        "cells",
        "hours",
    ]
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
        f"paired {LEVEL:.0%} interval over those seeds and test windows, which of one seed knows "
        "nothing of how seeds differ; below 1 is as the paper says",
        f"verdict: {HOLDS} / {FAILS} / {OPEN}, by the rule that the yaml of the claim states, over "
        f"all settings; {MIXED} where one setting says the contrary of another or of all",
        "settings: how many hold, do not, are open, and how many models collapsed; cells: measured "
        "of those that are planned; hours: of all cells of the claim",
    ]
    return markdown_table(TITLE, heads, rows, 3, notes) + "\n"


def _index_row(claim: str, key: tuple[str, str, str], lines: Sequence[dict[str, str]]) -> list[str]:
    whole = next(line for line in lines if line["setting"] == ALL)
    counts = Counter(line["verdict"] for line in lines if line["setting"] != ALL)
    low, high = (f"{float(whole[k]):.3f}" if whole[k] else "" for k in ("low", "high"))
    effect = f"{float(whole['effect']):.3f} ({low} - {high})" if whole["effect"] else "-"
    fell = int(whole["collapsed"]) + int(whole["rival_collapsed"])
    so_far = " so far" * (int(whole["measured"]) < int(whole["planned"]))
    settings = " / ".join(str(counts[verdict]) for verdict in (HOLDS, FAILS, OPEN))
    return [
        f"[{claim}]({claim}.md)",
        key[0],
        f"{key[1]}, {key[2]}",
        f"**{whole['verdict']}{so_far}**",
        effect,
        whole["seeds"].replace(" ", ", ") or "-",
        settings + f", {fell} collapsed" * bool(fell),
        f"{whole['measured']} of {whole['planned']}",
        whole["hours"],
    ]
