"""The reports at the end of a sweep: which there are, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from support import result_folders as made

from sparsemend.config.locations import conf_folder
from sparsemend.result.run_result import RunResult
from sparsemend.result.summary import summary_of
from sparsemend.sweep.read import Cell
from sparsemend.sweep.report import summary_csv, summary_table


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([], ["sweep"]),
        (["experiment=arena"], ["sweep", "arena"]),
        (["+search=rank"], ["sweep", "search"]),
    ],
    ids=" ".join,
)
def test_the_report_that_exits_comes_first_and_so_ends_last(
    lines: list[str], names: list[str]
) -> None:
    with initialize_config_dir(str(conf_folder())):
        cfg = compose("run", lines, return_hydra_config=True)
    assert list(cfg.hydra.callbacks) == names
    assert cfg.hydra.callbacks.sweep.table == ("search" not in names)


def test_debug_runs_are_marked_wherever_a_sweep_or_a_tracker_sums_up() -> None:
    content = made.result()
    cells = [Cell("0", {}, RunResult.from_json(content))]
    assert "debug" not in summary_csv(cells)
    assert summary_table(cells, Path("out")).title == "out"
    assert "debug/blocks" not in summary_of(content)
    content["config"]["debug"] = {"blocks": 2}
    cells.append(Cell("1", {}, RunResult.from_json(content)))
    assert "debug/blocks" in summary_csv(cells).splitlines()[0]
    assert summary_table(cells, Path("out")).title == "DEBUG RUNS: out"
    assert summary_of(content)["debug/blocks"] == 2
