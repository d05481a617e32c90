"""Marks and skips what needs a GPU, and writes its models once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gpu_runs import BLOCK_7B, MISSING, REASON, SMALL, Run, runner


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker("gpu")
        if MISSING:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def run_7b_block(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(BLOCK_7B, tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="session")
def run_small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(SMALL, tmp_path_factory.mktemp("small"))
