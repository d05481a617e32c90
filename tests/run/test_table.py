"""The table a run ends with."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from sparsemend.run.table import rates_chart, summary_table

STATES = ("dense", "pruned", "repaired")


def result(*, task: bool) -> dict[str, Any]:
    metrics = {state: {"perplexity/test": 10.5 + i} for i, state in enumerate(STATES)}
    if task:
        for i, state in enumerate(STATES):
            metrics[state]["perplexity/task"] = 100.25 - i
    cost = {"seconds": 1.0, "peak_bytes": 2**20}
    return {
        "config": {
            "model": {"name": "tiny"},
            "pruner": {"_target_": "sparsemend.pruner.wanda.Wanda"},
            "method": {"_target_": "sparsemend.method.masked_lora.MaskedLora"},
        },
        "protocol": {"corpus": "docs", "windows": 2, "seqlen": 8},
        "sparsity": {"target": 0.6, "achieved": 0.6},
        "cost": {
            **dict.fromkeys(("load", "prune", "repair", "export"), cost),
            "evaluate": {
                "seconds": 34.94,
                "peak_bytes": 2**22,
                "by_state": {
                    state: {"seconds": 10.5 + i, "peak_bytes": 2 ** (20 + i)}
                    for i, state in enumerate(STATES)
                },
            },
        },
        "metrics": metrics,
        "peak_scope": "stage",
    }


def printed(content: dict[str, Any]) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(content))
    return capture.get()


def test_a_task_stands_beside_the_perplexity() -> None:
    lines = printed(result(task=True)).splitlines()
    assert [cell.strip() for cell in lines[2].split("┃")[2:5]] == [
        "perplexity",
        "task",
        "sparsity asked",
    ]
    rows = [line.split("│") for line in lines if "│" in line]
    assert [row[3].strip() for row in rows] == ["100.250", "99.250", "98.250"]


@pytest.mark.parametrize("task", [True, False])
def test_the_table_fits_a_log_file_on_one_line_per_row(task: bool) -> None:
    lines = printed(result(task=task)).splitlines()
    assert sum("│" in line for line in lines) == 3
    assert max(map(len, lines)) <= 100


def test_a_measure_that_was_not_taken_is_a_dash_and_one_that_overflowed_says_so() -> None:
    content = result(task=False)
    content["metrics"] = {"dense": {}, "pruned": {"perplexity/test": None}, "repaired": {}}
    rows = [line.split("│") for line in printed(content).splitlines() if "│" in line]
    assert [row[2].strip() for row in rows] == ["-", "not finite", "-"]


def test_a_row_shows_the_seconds_and_the_peak_of_its_own_work() -> None:
    rows = [line.split("│") for line in printed(result(task=False)).splitlines() if "│" in line]
    assert [row[5].strip() for row in rows] == ["10.5", "12.5", "13.5"]
    assert [row[6].strip() for row in rows] == ["1 MiB", "2 MiB", "4 MiB"]
    assert "besides: load 1.0 s, export 1.0 s" in printed(result(task=False))


def test_seconds_that_an_earlier_run_spent_stand_in_brackets() -> None:
    again = {**result(task=False), "from_run": {"folder": "out/0"}}
    rows = [line.split("│") for line in printed(again).splitlines() if "│" in line]
    assert [row[5].strip() for row in rows] == ["10.5", "(1.0) + 11.5", "(1.0) + 12.5"]
    assert "in brackets: seconds of the run measured again" in printed(again)
    assert "brackets" not in printed(result(task=False))


def test_without_a_task_there_is_no_such_column() -> None:
    assert "task" not in printed(result(task=False))


@pytest.mark.parametrize("scored", [True, False])
def test_the_chart_has_a_bar_per_block_as_long_as_its_rate(scored: bool) -> None:
    console = Console(width=100)
    rates = {"model.layers.0": 0.25, "model.layers.1": 0.75}
    scores = (
        {"model.layers.0": 4.5, "model.layers.1": 1.25} if scored else {"model.layers.0.q": 1.0}
    )
    with console.capture() as capture:
        console.print(rates_chart(rates, scores, 0.5))
    title, _, *rows = capture.get().splitlines()
    assert title.strip() == "sparsity by block, mean 0.5000"
    cells = [row.split() for row in rows]
    assert [cell[:2] for cell in cells] == [["0", "0.2500"], ["1", "0.7500"]]
    assert [cell[-1].count("█") for cell in cells] == [10, 30]
    assert [cell[2:-1] for cell in cells] == ([["4.5"], ["1.25"]] if scored else [[], []])
