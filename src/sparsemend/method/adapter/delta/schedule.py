"""When sparse deltas move, from step counts alone (no torch).

With interval R and window A, steps 1 ... A and mR ... mR + A (m >= 1) are observed, and a round
follows steps A, R + A, 2R + A, ...: the first window has A steps, later ones A + 1 (the code of
SpIEL, Ansell et al. 2024, arXiv 2401.16405).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsemend.sparse.drop_fraction import DECAYS, drop_fraction


@dataclass(frozen=True, kw_only=True)
class RoundSchedule:
    """The rounds of a fit of `steps` optimizer steps."""

    interval: int
    window: int
    steps: int
    initial: float
    first: float | None  # of the first round; None: as `decay` has it
    decay: str

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"method.accumulation_steps={self.window} is below 1")
        if self.window >= self.interval - 1:
            raise ValueError(
                f"method.accumulation_steps={self.window} is not below method.update_interval - 1 "
                f"= {self.interval - 1}: a window would begin again before its round; set "
                f"method.update_interval={self.window + 2} or higher"
            )
        if self.interval > self.steps:
            raise ValueError(
                f"method.update_interval={self.interval} is longer than method.max_steps="
                f"{self.steps}, so at most one round would come; set method.update_interval="
                f"{self.steps} or lower, or train longer"
            )
        if not 0 < self.initial <= 1:
            raise ValueError(
                f"method.initial_drop_rate={self.initial} is not in (0, 1]; it is the fraction of "
                "deltas that a round replaces, for example 0.2"
            )
        if self.first is not None and not 0 < self.first <= 1:
            raise ValueError(
                f"method.first_drop_rate={self.first} is not in (0, 1]; it is the fraction of "
                "deltas that the first round replaces; null takes it from method.drop_schedule"
            )
        if self.decay not in DECAYS:
            raise ValueError(
                f"method.drop_schedule={self.decay!r} is not one of: {', '.join(DECAYS)}"
            )

    def due(self, step: int) -> bool:
        """Whether a round follows optimizer step `step` (1-based)."""
        return step <= self.steps and step % self.interval == self.window

    def observes(self, step: int) -> bool:
        """Whether the gradients of optimizer step `step` (1-based) are collected for a round."""
        phase = step % self.interval
        last = step - phase + self.window
        opened = step >= self.interval or phase > 0
        return opened and phase <= self.window and last <= self.steps

    def fraction(self, step: int) -> float:
        """Share of the deltas that the round after `step` replaces."""
        if self.first is not None and step == self.window:
            return self.first
        return drop_fraction(self.initial, self.decay, step / self.steps)
