"""The verdicts of claims as CSV, and the index that is made of all such files in a folder."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparsemend.sweep.arena.bootstrap import LEVEL, Ratio
from sparsemend.sweep.claims.claim import Claim
from sparsemend.sweep.claims.verdict import FAILS, HOLDS, OPEN
from sparsemend.table.formats import markdown_table

INDEX = "README.md"
CSV_COLUMNS = (
    *("claim", "says", "model", "text", "setting", "measure", "at_most", "ours", "rival"),
    *("effect", "low", "high", "seeds", "verdict", "published", "hours"),
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
        took = f"{claim.hours:.2f}"
        if one.effect is not None:
            figures = _figures(one.effect, one.seeds)
            writer.writerow([*front, ALL, *rule, "", "", *figures, one.verdict, "", took])
        for c in one.comparisons:
            means = [c.mean(side, statement.measure) for side in (c.ours, c.rival)]
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
