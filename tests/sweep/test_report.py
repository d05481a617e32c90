"""The reports at the end of a sweep: which there are, and in which order."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from sparsemend.config.locations import conf_folder


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
