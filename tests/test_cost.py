import pytest
import torch

from sparsemend import cost
from sparsemend.cost import Stages


def test_seconds_add_up_over_repeated_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 20.0, 20.5])
    monkeypatch.setattr(cost, "perf_counter", lambda: next(clock))
    stages = Stages(torch.device("cpu"))
    for _ in range(2):
        with stages.measure("evaluate"):
            pass
    assert stages.costs["evaluate"].seconds == 1.5


def test_a_stage_that_fails_is_measured_all_the_same() -> None:
    stages = Stages(torch.device("cpu"))
    try:
        with stages.measure("load"):
            raise ValueError
    except ValueError:
        pass
    assert stages.costs["load"].peak_bytes > 0


def test_the_peak_belongs_to_the_stage_that_made_it() -> None:
    stages = Stages(torch.device("cpu"))
    if stages.peak_scope != "stage":
        return  # this system cannot reset the peak, and the scope says so
    with stages.measure("large"):
        torch.ones(64 * 2**20)  # 256 MiB, freed before the next stage
    with stages.measure("small"):
        torch.ones(1)
    assert stages.costs["large"].peak_bytes - stages.costs["small"].peak_bytes > 200 * 2**20
