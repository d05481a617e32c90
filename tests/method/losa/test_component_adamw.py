"""AdamW with an age per component against torch's AdamW, and what a new component begins with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from sparsemend.method.losa.component_adamw import ComponentAdamW

RATE, BETAS, DECAY = 1e-2, (0.9, 0.999), 0.1


def optimizer(a: nn.Parameter, b: nn.Parameter, decay: float = DECAY) -> ComponentAdamW:
    return ComponentAdamW([a], [b], lr=RATE, betas=BETAS, weight_decay=decay)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_of_one_age_take_the_steps_of_torchs_adamw(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 7), (5, 3))]
    ours, theirs = ([nn.Parameter(x.clone()) for x in drawn] for _ in range(2))
    reference = AdamW(theirs, lr=RATE, betas=BETAS, weight_decay=DECAY)
    mine = optimizer(*ours)
    for _ in range(20):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=generator, dtype=dtype)
        mine.step()
        reference.step()
    assert [mine.state[p]["step"].shape for p in ours] == [(3, 1), (1, 3)]
    for one, other in zip(ours, theirs, strict=True):
        # each of 20 steps of at most `RATE` rounds a handful of times
        torch.testing.assert_close(one, other, rtol=1e-6, atol=20 * RATE * 1e-6)


def test_a_new_component_of_an_old_factor_begins_with_steps_of_the_learning_rate() -> None:
    a, b = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4, 2)))
    mine = optimizer(a, b, decay=0.0)
    for parameter, new in ((a, slice(1, 2)), (b, (slice(None), slice(1, 2)))):
        mine.state[parameter] = {
            "exp_avg": torch.ones_like(parameter),
            "exp_avg_sq": torch.ones_like(parameter),
            "step": torch.full((2, 1) if parameter is a else (1, 2), 500.0),
        }
        mine.state[parameter]["exp_avg"][new] = 0
        mine.state[parameter]["exp_avg_sq"][new] = 0
        mine.state[parameter]["step"].view(-1)[1] = 0
    for count in range(1, 4):
        a.grad, b.grad = torch.full_like(a, 0.3), torch.full_like(b, 0.3)
        mine.step()
        # of a constant gradient AdamW's every step is the learning rate
        expected = torch.tensor(-RATE * count)
        torch.testing.assert_close(a[1], expected.expand(3), rtol=1e-5, atol=0)
        torch.testing.assert_close(b[:, 1], expected.expand(4), rtol=1e-5, atol=0)
    assert mine.state[a]["step"].flatten().tolist() == [503, 3]


def test_factors_in_bf16_are_trained_in_place() -> None:
    a, b = (nn.Parameter(torch.ones(shape, dtype=torch.bfloat16)) for shape in ((2, 3), (4, 2)))
    a.grad, b.grad = torch.ones_like(a), -torch.ones_like(b)
    optimizer(a, b, decay=0.0).step()
    assert a.dtype == torch.bfloat16
    # the first step is the learning rate; near 1 bf16 has 8 bits
    assert (a - (1 - RATE)).abs().max() < 2**-8
    assert (b - (1 + RATE)).abs().max() < 2**-8
