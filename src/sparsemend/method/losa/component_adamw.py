"""AdamW over factors whose components come and go; each component has its own age.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      a <- a + 1
    p <- (1 - lr decay) p - lr / (1 - b1^a) * m / (sqrt(v / (1 - b2^a)) + eps)

It is torch's AdamW but for the age a, which there is one of the whole tensor: a component that
joins an old factor would have zero moments and the corrections of the old one, and so a first step
of (1 - b1) / sqrt(1 - b2) times the learning rate, 3.2 for b2 = 0.999.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.training.optimizers import SteppedOptimizer


class ComponentAdamW(SteppedOptimizer):
    """state of a factor: exp_avg, exp_avg_sq as torch's AdamW has, step fp32, one per component.

    step is (R, 1) for the rows of A (R, I) and (1, R) for the columns of B (O, R).
    """

    def __init__(
        self,
        rows: Iterable[nn.Parameter],
        columns: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,  # torch's default, which `fresh` moments have
    ) -> None:
        """rows: factors whose components are rows; columns: those whose components are columns."""
        groups = [{"params": list(rows), "dim": 0}, {"params": list(columns), "dim": 1}]
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(groups, settings)

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        first_beta, second_beta = group["betas"]
        state, gradient, rate = self.state[parameter], parameter.grad, group["lr"]
        assert gradient is not None
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            shape = [1, 1]
            shape[group["dim"]] = parameter.shape[group["dim"]]
            # torch casts every other name to the parameter's dtype when it loads a state
            state["step"] = parameter.new_zeros(shape, dtype=torch.float32)
        # a state that torch loads leaves it where it was read
        age = state["step"] = state["step"].to(parameter.device)
        age += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - first_beta)
        square.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
        spread = square.sqrt().div_(correction(second_beta, age).sqrt()).add_(group["eps"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.addcdiv_(mean / correction(first_beta, age), spread, value=-rate)


def correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age without the cancellation of a beta near 1; 1 for beta = 0."""
    return -torch.expm1(age * math.log(beta)) if beta else torch.ones_like(age)
