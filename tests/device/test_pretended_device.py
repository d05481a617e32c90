"""The pretended device refuses what CUDA refuses, allows the rest, and finds seeded faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_runs import contract, sparsemend_here
from support.pretended_device import FAR, Far, Misplaced, Seen
from support.pretended_hardware import PRETENDED
from torch import Tensor, nn

from sparsemend.pruner import wanda
from sparsemend.sparse import linear, selection
from sparsemend.sparse.packing import unpack

pytestmark = pytest.mark.device
HERE = torch.arange(6.0).view(2, 3)
REFUSED: dict[str, Callable[[Tensor], object]] = {
    "operands on both devices": lambda far: far + HERE,
    "an index of gather on the CPU": lambda far: far.gather(
        1, torch.zeros(2, 1, dtype=torch.int64)
    ),
    "a far index of a CPU tensor": lambda far: HERE[far > 2],
    "a far operand written into a CPU tensor": lambda far: torch.zeros(()).add_(far.sum()),
    "a CPU generator": lambda far: torch.rand(2, device=FAR, generator=torch.Generator()),
    "a CPU generator for an operator in place": lambda far: far.normal_(
        generator=torch.Generator()
    ),
    "concatenation of both": lambda far: torch.cat([far, HERE]),
    "a far scalar beside a CPU tensor": lambda far: HERE * far.sum(),
}
ALLOWED: dict[str, Callable[[Tensor], object]] = {
    "a CPU scalar": lambda far: far * torch.tensor(2.0),
    "a CPU index": lambda far: far[:, torch.tensor([0, 2])],
    "a copy": lambda far: torch.empty(2, 3).copy_(far),
    "a number": lambda far: far.sum().item() + far.tolist()[0][0],
    "a mask of its own": lambda far: far[far > 2],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name: str, far: Seen) -> None:
    with pytest.raises(Misplaced):
        REFUSED[name](HERE.to(FAR))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_is_allowed(name: str, far: Seen) -> None:
    ALLOWED[name](HERE.to(FAR))


def test_numpy_of_a_far_tensor_is_refused(far: Seen) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        np.asarray(HERE.to(FAR))


def test_values_and_gradients_are_those_of_the_cpu(far: Seen) -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    layer(HERE).sum().backward()
    expected = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    layer.to(FAR)
    assert all(isinstance(p, nn.Parameter) and p.device == FAR for p in layer.parameters())
    layer(HERE.to(FAR)).sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert isinstance(parameter.grad, Far)
        assert torch.equal(parameter.grad.cpu(), gradient)


def test_what_makes_the_host_wait_and_what_crosses_is_counted(far: Seen) -> None:
    values = HERE.to(FAR)
    assert sum(far.bytes_moved.values()) == HERE.nbytes
    before = sum(far.waits.values())
    assert values.sum().item() == 15.0
    assert len(values[values > 2]) == 3
    assert sum(far.waits.values()) == before + 2


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_operator_without_an_order_is_counted_or_refused(
    far: Seen, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        (HERE > 2).to(FAR).cumsum(0)  # of integers, which add up alike in any order
        if deterministic:
            with pytest.raises(Misplaced, match="no deterministic form"):
                HERE.to(FAR).cumsum(0)
        else:
            HERE.to(FAR).cumsum(0)
            assert [name for name, _ in far.unordered] == ["cumsum"]
    finally:
        torch.use_deterministic_algorithms(before)


def unpacked_on_the_host(packed: Tensor, columns: int) -> Tensor:
    return unpack(packed.cpu(), columns)


def numpys_selection(score: Tensor, count: int) -> Tensor:
    partitioned = np.partition(score.detach().numpy(), count - 1, axis=1)
    return torch.from_numpy(partitioned[:, count - 1 : count].copy())


def drawn_on_the_host(score: Tensor) -> Tensor:
    return score + 0 * torch.rand(
        score.shape, device=score.device, generator=torch.Generator().manual_seed(0)
    )


FAULTS = {
    "a mask unpacked on the host": (linear, "unpack", unpacked_on_the_host, "sparse/linear.py"),
    "a score handed to numpy": (selection, "kth_lowest", numpys_selection, "numpys_selection"),
    "a generator of the host": (wanda, "checked_finite", drawn_on_the_host, "pruner/wanda.py"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_ends_a_run_where_it_lies(
    fault: str, workspace: Path, far: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, broken, where = FAULTS[fault]
    monkeypatch.setattr(module, name, broken)
    run = contract(workspace, tmp_path / "out", PRETENDED, "method=none")
    done = sparsemend_here(run, workspace)
    assert done.returncode == 1
    assert where in done.stderr
