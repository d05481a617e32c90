"""Seeds of parts of a run: functions of its seed and a number, so that no part shifts another's."""

from __future__ import annotations

PRIME = 1_000_003  # above any number of steps, blocks or rounds, so that two seeds share no part


def mix_seed(seed: int, number: int) -> int:
    """The seed of a run's step, epoch, block or round `number`."""
    return seed * PRIME + number
