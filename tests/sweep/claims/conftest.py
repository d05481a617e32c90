"""Two sweeps of a claim: one that chose a value, one with a pruned model beside its repair."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.claim_sweeps import DSNOT, KEY, STATEMENT, cell, rates, sweep


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """Equal rates with two seeds; two differences on seed 0, of which validation takes the first.

    The test text would take the second, and seed 1 has the first alone.
    """
    folder = sweep(tmp_path / "sweep", STATEMENT, key=KEY)
    rates(folder, 0, 0, None, pruned=30.0)
    rates(folder, 1, 0, 0.01, pruned=24.0, validation=20.0)
    rates(folder, 2, 0, 0.02, pruned=22.0, validation=21.0)
    rates(folder, 3, 1, None, pruned=31.0)
    rates(folder, 4, 1, 0.01, pruned=24.0, validation=20.0)
    return folder


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """DSnoT with two seeds, better than the pruned model on both."""
    folder = sweep(tmp_path / "sweep", DSNOT)
    for seed in (0, 1):
        cell(folder / str(seed), method="dsnot", seed=seed, pruned=30.0, repaired=20.0)
    return folder
