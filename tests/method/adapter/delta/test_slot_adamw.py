"""AdamW with an age per value: torch's own where ages agree, exact seeds where they do not."""

import copy

import pytest
import torch
from support.layers import random
from torch import Tensor, nn

from sparsemend.method.adapter.delta.slot_adamw import OLDEST, SlotAdamW, corrections

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}


def optimizer_of(values: Tensor, **changed: float) -> tuple[nn.Parameter, SlotAdamW]:
    parameter = nn.Parameter(values.clone())
    return parameter, SlotAdamW([parameter], **{**SETTINGS, **changed})


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


def test_it_is_adam_by_the_published_formula() -> None:
    """With epsilon outside the correction, as in SpIEL; ten steps in fp64."""
    parameter, optimizer = optimizer_of(random(5, seed=0), weight_decay=0.5)
    value, m, v = parameter.detach().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    for age in range(1, 11):
        g = random(5, seed=age)
        step(parameter, optimizer, g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value -= 0.1 * m / (1 - 0.9**age) * (1 - 0.999**age) ** 0.5 / (v.sqrt() + 1e-6)
        value -= 0.1 * 0.5 * value
    torch.testing.assert_close(parameter.detach(), value, rtol=1e-13, atol=1e-13)


def test_without_epsilon_it_is_torchs_adam() -> None:
    parameter, optimizer = optimizer_of(random(5, seed=0), eps=0.0)
    other = nn.Parameter(parameter.detach().clone())
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.9, 0.999), eps=0.0)
    for age in range(10):
        for one, by in ((parameter, optimizer), (other, adam)):
            step(one, by, random(5, seed=age))
    torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_seeded_moments_are_adams_after_the_same_gradients(steps: int) -> None:
    """Also the next update: with the offset of 1 the seeded value moves as the trained one."""
    gradient = random(3, seed=1)
    trained, optimizer = optimizer_of(random(3, seed=0))
    for _ in range(steps):
        step(trained, optimizer, gradient)
    seeded, other = optimizer_of(random(3, seed=0))
    step(seeded, other, random(3, seed=2))
    slots = torch.tensor([0, 2])
    mean, square = gradient[slots], gradient[slots] ** 2
    other.seed_(seeded, slots, mean, square, age=steps, stored=steps)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        one, two = optimizer.state[trained][name][slots], other.state[seeded][name][slots]
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        seeded.copy_(trained)
    for one, by in ((trained, optimizer), (seeded, other)):
        step(one, by, gradient)
    torch.testing.assert_close(trained[slots], seeded[slots], rtol=1e-12, atol=1e-12)


def test_an_offset_of_nothing_takes_a_larger_step_by_four_and_a_half_percent() -> None:
    """The quirk of SpIEL's code: ages of five beside moments of six steps."""
    moved = []
    for offset in (0, 1):
        parameter, optimizer = optimizer_of(torch.zeros(1).double(), eps=0.0)
        step(parameter, optimizer, torch.ones(1).double())
        one = torch.ones(1).double()
        optimizer.seed_(parameter, torch.tensor([0]), one, one, age=5, stored=5 + offset - 1)
        parameter.data.zero_()
        step(parameter, optimizer, one)
        moved.append(float(parameter.detach()))
    assert moved[1] == pytest.approx(-0.1)
    assert moved[0] / moved[1] == pytest.approx(1.0445, abs=1e-3)


def test_a_value_without_gradient_and_moments_stays_zero() -> None:
    parameter, optimizer = optimizer_of(torch.zeros(2), weight_decay=0.1)
    for _ in range(3):
        step(parameter, optimizer, torch.tensor([0.0, 1.0]))
    assert parameter[0] == 0
    assert parameter[1] != 0


def test_ages_survive_a_saved_state_and_stop_at_the_oldest() -> None:
    parameter, optimizer = optimizer_of(torch.zeros(2))
    step(parameter, optimizer, torch.ones(2))
    optimizer.state[parameter]["step"][1] = OLDEST
    other, loaded = optimizer_of(parameter.detach())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.state[other]["step"].dtype == torch.int16
    for one, by in ((parameter, optimizer), (other, loaded)):
        step(one, by, torch.ones(2))
        assert by.state[one]["step"].tolist() == [2, OLDEST]
    assert torch.equal(parameter, other)


def test_the_oldest_age_needs_no_correction_in_fp32() -> None:
    assert corrections(0.9, 0.999, torch.float32, torch.device("cpu"))[OLDEST] == 1
    with pytest.raises(ValueError, match="16-bit"):
        optimizer_of(torch.zeros(1), betas=(0.9, 0.9999))


def test_ages_go_to_where_their_parameter_is_when_a_state_is_loaded() -> None:
    """torch leaves the key `step` on the host; meta stands for any other device."""
    values = nn.Parameter(torch.zeros(3))
    optimizer = SlotAdamW([values], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    values.grad = torch.ones(3)
    optimizer.step()
    elsewhere = nn.Parameter(torch.zeros(3, device="meta"))
    other = SlotAdamW([elsewhere], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    other.load_state_dict(optimizer.state_dict())
    assert {v.device.type for v in other.state[elsewhere].values()} == {"meta"}
    assert other.state[elsewhere]["step"].dtype == torch.int16
