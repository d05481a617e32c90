"""What a dry run writes is counted by size, and what it reads is there again by shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsemend.doctor.ledger import Ledger
from sparsemend.doctor.tensors import DryTensors
from sparsemend.doctor.writes import Written


@pytest.mark.parametrize(("mapped", "held"), [(True, 1), (False, 2)])
def test_a_file_that_is_mapped_takes_no_memory(mapped: bool, held: int, tmp_path: Path) -> None:
    ledger = Ledger()
    written, path = Written(tmp_path, ledger), tmp_path / "best.ckpt"
    with written.recording(), DryTensors(ledger, 0.5).running():
        content = {"state_dict": {"weight": torch.empty(1000, 1000)}}
        torch.save(content, path)
        read = torch.load(path, "cpu", mmap=mapped)
        assert read["state_dict"]["weight"].shape == (1000, 1000)
        assert ledger.live["cpu"] == held * 4_000_000
    assert written.by_kind() == {"best.ckpt": 4_000_000}
