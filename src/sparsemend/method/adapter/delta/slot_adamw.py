"""AdamW over sparse deltas; each delta has its own age, which a move may set.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      a <- a + 1
    value <- value - lr m / (1 - b1^a) * sqrt(1 - b2^a) / (sqrt(v) + eps)
    value <- value - lr * decay * value

A delta that moves is seeded from the window's sums at its new position: with mean gradient g and
mean square q over a steps, m = (1 - b1^a) g and v = (1 - b2^a) q, which Adam's moments would be if
g were constant.
Ages are 16-bit and stop at 32767, where both corrections are 1 to the last bit of fp32.

SpIEL, Ansell et al. 2024, arXiv 2401.16405.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.training.optimizers import SteppedOptimizer

OLDEST = 32767
FLAT = 2.0**-25  # 1 - FLAT rounds to 1 in fp32


class SlotAdamW(SteppedOptimizer):
    """state of a parameter (k,): exp_avg, exp_avg_sq in its dtype and step, int16, all (k,)."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        for beta in betas:
            if not 0 <= beta < 1 or beta**OLDEST > FLAT:
                raise ValueError(
                    f"beta {beta} is not in [0, {FLAT ** (1 / OLDEST):.5f}], beyond which 16-bit "
                    "ages would not reach the end of the bias correction"
                )
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        first_beta, second_beta = group["betas"]
        state, gradient, rate = self.state[parameter], parameter.grad, group["lr"]
        assert gradient is not None
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            # torch casts every other name to the parameter's dtype when it loads a state
            state["step"] = torch.zeros_like(parameter, dtype=torch.int16)
        mean, square, age = state["exp_avg"], state["exp_avg_sq"], state["step"]
        age += (age < OLDEST).to(age.dtype)
        mean.lerp_(gradient, 1 - first_beta)
        square.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
        table = corrections(first_beta, second_beta, parameter.dtype, parameter.device)
        scaled = table[age.int()].mul_(mean)
        parameter.addcdiv_(scaled, square.sqrt().add_(group["eps"]), value=-rate)
        if group["weight_decay"]:
            parameter.mul_(1 - rate * group["weight_decay"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, and move the ages to their parameters, which torch leaves behind."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(parameter.device)

    @torch.no_grad()
    def seed_(
        self,
        parameter: Tensor,
        slots: Tensor,
        mean: Tensor,
        square: Tensor,
        *,
        age: int,
        stored: int,
    ) -> None:
        """Give `slots` the moments of `age` steps of gradient `mean` and square `square`.

        stored: the age that the next update finds, before it adds one.
        """
        (group,) = self.param_groups
        first_beta, second_beta = group["betas"]
        state = self.state[parameter]
        state["exp_avg"][slots] = ((1 - first_beta**age) * mean).to(parameter.dtype)
        state["exp_avg_sq"][slots] = ((1 - second_beta**age) * square).to(parameter.dtype)
        state["step"][slots] = stored


@cache
def corrections(
    first_beta: float, second_beta: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """sqrt(1 - b2^a) / (1 - b1^a) for every age a, (32768,), taken in fp64; age 0 has none."""
    with torch.inference_mode(False):
        age = torch.arange(OLDEST + 1, dtype=torch.float64)
        table = (1 - second_beta**age).sqrt() / (1 - first_beta**age)
        table[0] = 0
        return table.to(device, dtype)
