"""The tokens that a generation may have (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked


def check(asked: Asked) -> None:
    """Raise ValueError where prompt and new tokens exceed the positions that the model has."""
    speed, config = asked.section, asked.model.config
    if config is None or config.positions is None:
        return
    length, (name, positions) = speed.prompt_tokens + speed.new_tokens, config.positions
    if length > positions:
        raise ValueError(
            f"evaluation.speed.prompt_tokens={speed.prompt_tokens} and new_tokens="
            f"{speed.new_tokens} exceed the model's {name}={positions}; lower either"
        )
