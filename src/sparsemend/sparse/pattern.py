"""Sparsity patterns by name: `unstructured`, `N:M` (N kept of every M inputs), `mixed:M`.

Free of torch, so that a bad pattern is refused before anything heavy is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """`kept` of every `group_size` consecutive inputs stay; group_size 0 means unstructured.

    A mixed pattern has kept = -1: each linear takes N from its own sparsity.
    """

    kept: int = 0
    group_size: int = 0

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern that `text` names.

        Raises ValueError on anything but `unstructured`, `N:M` with 0 < N < M, `mixed:M`.
        """
        if text == "unstructured":
            return Pattern()
        mixed = re.fullmatch(r"mixed:(\d+)", str(text))
        if mixed and int(mixed[1]) >= 2:
            return Pattern(-1, int(mixed[1]))
        match = re.fullmatch(r"(\d+):(\d+)", str(text))
        if match and 0 < int(match[1]) < int(match[2]):
            return Pattern(int(match[1]), int(match[2]))
        raise ValueError(
            f"pattern {text!r} is not one of: unstructured, N:M with 0 < N < M (N kept of every M "
            "inputs, for example 2:4), mixed:M (for example mixed:8)"
        )

    @property
    def unstructured(self) -> bool:
        return self.group_size == 0

    @property
    def mixed(self) -> bool:
        return self.kept == -1

    @property
    def sparsity(self) -> float:
        """1 - N/M; undefined (ValueError) for unstructured and mixed patterns."""
        if self.unstructured or self.mixed:
            raise ValueError(f"pattern {self} does not fix a sparsity")
        return 1 - self.kept / self.group_size

    @property
    def largest_rate(self) -> float:
        """The largest sparsity of a block: 1 - 1/M with a mixed pattern, whose N is at least 1."""
        return (self.group_size - 1) / self.group_size if self.mixed else 1.0

    def at(self, sparsity: float) -> Pattern:
        """The pattern of one linear: a mixed pattern resolved at that linear's sparsity."""
        if not self.mixed:
            return self
        kept = self.group_size * (1 - sparsity)
        if abs(kept - round(kept)) > 1e-6:
            raise ValueError(
                f"sparsity {sparsity} keeps {kept:g} of {self.group_size} inputs, no whole number"
            )
        return Pattern(round(kept), self.group_size)

    def check_sparsity(self, sparsity: float) -> None:
        """Raise ValueError unless `sparsity` is in [0, 1) and is what an N:M pattern implies."""
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity {sparsity} is not in [0, 1)")
        if self.unstructured or self.mixed:
            return
        if abs(sparsity - self.sparsity) > 1e-6:  # six digits of 1/3 are enough
            raise ValueError(
                f"sparsity {sparsity} contradicts pattern {self}, which keeps {self.kept} of every "
                f"{self.group_size} inputs; set sparsity={self.sparsity:g}"
            )

    def __str__(self) -> str:
        if self.unstructured:
            return "unstructured"
        return f"mixed:{self.group_size}" if self.mixed else f"{self.kept}:{self.group_size}"
