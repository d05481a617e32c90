"""Optimizers by name: AdamW, SGD, Muon for matrices beside AdamW for the rest, and 8-bit AdamW.

Muon (Jordan et al. 2024; scaled to AdamW's update size as in Liu et al. 2025, arXiv 2502.16982)
trains the shipped tiny model; repair methods default to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer

OPTIMIZERS = ("adamw", "sgd", "muon", "adamw_8bit")


def make_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    decay_vectors: bool = False,
) -> Optimizer:
    """One of OPTIMIZERS over named parameters; betas apply to AdamW.

    Decay applies to matrices, with `decay_vectors` to norms and biases too.
    """
    groups = _groups(parameters, weight_decay, decay_vectors)
    if name == "sgd":
        return SGD(groups, lr=learning_rate)
    if name == "adamw":
        return AdamW(groups, lr=learning_rate, betas=betas)
    if name == "muon":
        return MuonWithAdamW(
            parameters,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            betas=betas,
            decay_vectors=decay_vectors,
        )
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=learning_rate, betas=betas)
    raise ValueError(f"method.optimizer {name!r} is not one of: {', '.join(OPTIMIZERS)}")


def _groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, decay_vectors: bool
) -> list[dict[str, Any]]:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, weight_decay if decay_vectors else 0.0)]
    return [{"params": p, "weight_decay": decay} for p, decay in groups if p]


class SteppedOptimizer(Optimizer):
    """An optimizer whose step is an update of every parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step after `closure`, which computes the gradients, and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance()
        return loss

    def advance(self) -> None:
        """Change the parameters by their gradients; no graph is recorded."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Change one parameter by its gradient, with the settings of its group."""
        raise NotImplementedError


class MuonWithAdamW(SteppedOptimizer):
    """Muon on every matrix but embeddings and head, AdamW on the rest, seen as one optimizer."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        decay_vectors: bool,
    ) -> None:
        hidden = {n: p for n, p in parameters.items() if p.ndim == 2 and not _is_embedding(n)}
        rest = {n: p for n, p in parameters.items() if n not in hidden}
        self.parts: list[Optimizer] = []
        if hidden:
            self.parts.append(
                Muon(
                    hidden.values(),
                    lr=learning_rate,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            groups = _groups(rest, weight_decay, decay_vectors)
            self.parts.append(AdamW(groups, lr=learning_rate, betas=betas))
        # schedules with a lowest rate read the highest among the defaults
        super().__init__(parameters.values(), {"lr": learning_rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def advance(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def state_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """The state that an optimizer of `make_optimizer` has for one parameter; {} if none yet."""
    parts = optimizer.parts if isinstance(optimizer, MuonWithAdamW) else [optimizer]
    return next((part.state[parameter] for part in parts if parameter in part.state), {})


def _is_embedding(name: str) -> bool:
    return "embed" in name or "lm_head" in name or "wte" in name or "wpe" in name
