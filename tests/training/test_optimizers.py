"""What optimizers are made of, and that every schedule moves each of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sparsemend.training.optimizers import MuonWithAdamW, make_optimizer
from sparsemend.training.plan import CHOICES, StepPlan, learning_rate_schedule

NAMES = ("adamw", "sgd", "muon")  # adamw_8bit needs bitsandbytes


def plan(**changed: object) -> StepPlan:
    settings: dict[str, object] = {
        "learning_rate": 0.1,
        "min_learning_rate": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.95],
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_fraction": 0.0,
        "gradient_clip": 0.0,
        "precision": "32-true",
    }
    return StepPlan(**settings | changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay_vectors", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_decays_matrices_and_vectors_where_asked(
    name: str, decay_vectors: bool
) -> None:
    parameters = {"w": nn.Parameter(torch.ones(3, 3)), "b": nn.Parameter(torch.ones(3))}
    optimizer = make_optimizer(
        name,
        parameters,
        learning_rate=0.1,
        weight_decay=0.5,
        betas=(0.9, 0.95),
        decay_vectors=decay_vectors,
    )
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for letter, wanted in (("w", 0.95), ("b", 0.95 if decay_vectors else 1.0)):
        assert torch.allclose(parameters[letter], torch.tensor(wanted)), letter


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [({"norm": (3,)}, 1), ({"w": (3, 3)}, 1), ({"norm": (3,), "w": (3, 3)}, 2)],
    ids=["vectors alone", "matrices alone", "both"],
)
def test_muon_has_the_parts_that_have_parameters(
    shapes: dict[str, tuple[int, ...]], parts: int
) -> None:
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    optimizer = make_optimizer(
        "muon", parameters, learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.95)
    )
    assert isinstance(optimizer, MuonWithAdamW)
    assert len(optimizer.parts) == parts
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(bool((parameter < 1).all()) for parameter in parameters.values())


@pytest.mark.parametrize(
    ("name", "schedule", "lowest"),
    [
        *itertools.product(NAMES, CHOICES["schedule"], [0.0]),
        *itertools.product(NAMES, ["cosine"], [0.01]),
    ],
)
def test_every_schedule_that_a_plan_takes_moves_every_optimizer(
    name: str, schedule: str, lowest: float
) -> None:
    settings = plan(optimizer=name, schedule=schedule, min_learning_rate=lowest)
    model = nn.Linear(3, 3)
    optimizer = settings.make_optimizer(model)
    rates = learning_rate_schedule(settings, optimizer, 4)
    for _ in range(4):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        rates.step()
    falls = not schedule.startswith("constant")
    assert {round(group["lr"], 5) for group in optimizer.param_groups} == {lowest if falls else 0.1}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"learning_rate": 1e-7}, r"learning_rate 1e-07 is not above 1e-07.*=linear"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction 1 leaves .* no step to fall in.*=linear"),
    ],
)
def test_a_polynomial_that_cannot_fall_is_refused(changed: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(schedule="polynomial", **changed)
