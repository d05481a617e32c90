"""No mask and no rate depends on the size of the batches in which windows arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from support.configs import compose
from support.families import random_model
from support.schedules import schedule_of
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.blocks.walk import Calibration
from sparsemend.method.adapter.block_errors import ModelPair, output_errors
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

BATCHES = (1, 2, 4, 5)  # seven windows: all but the first leave a smaller batch at the end
FREE = Pattern()
# with 512 inputs the CPU's bf16 product rounds by the number of rows that it is given
WIDE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
OPT = {"ffn_dim": 512, "word_embed_proj_dim": 128}
PRUNERS = ("admm", "magnitude", "none", "ria", "sparsegpt", "wanda")  # existing prunes nothing
SCHEDULES: dict[str, dict[str, Any]] = {
    "alphapruning": {},
    "atp": {"common_difference": 0.1},
    "dlp": {},
    "er": {},
    "er_plus": {},
    "file": {"path": "rates.yaml"},
    "global": {"score": "wanda"},
    "lamp": {},
    "owl": {},
    "rmi": {"similarity_samples": 6},
    "uniform": {},
}
MODELS = [
    (family, dtype)
    for family in ("llama", "qwen3", "gemma2", "opt")
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(3, 96, (7, 64), generator=torch.Generator().manual_seed(5))


def wide_model(family: str, dtype: torch.dtype) -> Any:
    return random_model(family, **WIDE, **(OPT if family == "opt" else {})).to(dtype)


def pruned(
    family: str, dtype: torch.dtype, pruner: Pruner, sparsity: float, calibration: Calibration
) -> dict[str, tuple[Tensor, Tensor]]:
    """(support, weight) of every linear."""
    model = wide_model(family, dtype)
    rates = schedule_of("uniform").allocate(model, calibration, sparsity, FREE)
    prune(model, calibration, pruner, rates, FREE)
    return {name: (linear.keep, linear.weight) for name, linear in sparse_linears(model)}


def cases(names: Any, quick: tuple[str, ...], dtype: torch.dtype) -> list[Any]:
    every = [(name, *model) for name in names for model in MODELS]
    return slow_but_for(every, [(name, "llama", dtype) for name in quick])


@pytest.mark.parametrize(
    ("name", "family", "dtype"), cases(PRUNERS, ("sparsegpt", "wanda"), torch.bfloat16)
)
def test_batches_of_any_size_give_the_same_masks_and_weights(
    name: str, family: str, dtype: torch.dtype, windows: Tensor
) -> None:
    settings = compose("run", [f"pruner={name}"]).pruner
    pruner: Pruner = instantiate(
        settings, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
    )
    sparsity = 0.6 if pruner.prunes else 0.0
    one, *others = (
        pruned(family, dtype, pruner, sparsity, Calibration(windows.split(size)))
        for size in BATCHES
    )
    for other in others:
        assert [n for n in one if not all(map(torch.equal, one[n], other[n]))] == []


@pytest.mark.parametrize(
    ("name", "family", "dtype"), cases(SCHEDULES, ("owl", "rmi"), torch.bfloat16)
)
def test_batches_of_any_size_give_the_same_rates(
    name: str,
    family: str,
    dtype: torch.dtype,
    windows: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.yaml").write_text("0: 0.5\n1: 0.7\n")
    schedule, model = schedule_of(name, **SCHEDULES[name]), wide_model(family, dtype)

    def rates(size: int) -> Allocation:
        return schedule.allocate(model, Calibration(windows.split(size)), 0.6, FREE)

    one, *others = map(rates, BATCHES)
    assert all(other == one for other in others)


def test_batches_of_any_size_give_the_same_hidden_states(windows: Tensor) -> None:
    def last_inputs(size: int) -> Tensor:
        *_, last = Calibration(windows.split(size)).walk(wide_model("llama", torch.bfloat16))
        return torch.cat(list(last.inputs))

    one, *others = map(last_inputs, BATCHES)
    assert all(torch.equal(other, one) for other in others)


def test_batches_of_any_size_give_the_same_block_errors(windows: Tensor) -> None:
    dense, other = wide_model("llama", torch.float32), wide_model("llama", torch.float32)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(0.5)

    def errors(size: int) -> list[float]:
        device = torch.device("cpu")
        return output_errors(ModelPair(other, dense, Calibration(windows.split(size), device)))

    assert errors(1) == errors(4) == errors(5)
