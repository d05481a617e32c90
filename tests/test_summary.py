"""The table a run ends with."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from sparsemend.summary import summary_table

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
        "cost": {"load": cost, "prune": cost, "repair": cost},
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


def test_without_a_task_there_is_no_such_column() -> None:
    assert "task" not in printed(result(task=False))
