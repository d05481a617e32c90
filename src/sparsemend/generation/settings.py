"""What a generation is asked for, with its bounds (no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_TEMPERATURE = 1e-4  # far above 1e-38, where a float32 logit overflows when divided by it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.  None: as the folder's generation_config.json says.

    greedy: the likeliest token; else one at random, of those that temperature, top_p and top_k
    leave.
    """

    max_new_tokens: int
    greedy: bool
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens} is not at least 1")
        drawn = {
            "--temperature": self.temperature,
            "--top-p": self.top_p,
            "--top-k": self.top_k,
        }
        named = [name for name, value in drawn.items() if value is not None]
        if self.greedy and named:
            raise ValueError(
                f"--greedy takes the likeliest token, and {named[0]} draws one; leave one out"
            )
        if self.temperature is not None and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"--temperature {self.temperature:g} is not in [{LEAST_TEMPERATURE:g}, inf); take "
                "--greedy for the likeliest token"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p:g} is not in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k} is not at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed} is not in [0, 2^63)")
