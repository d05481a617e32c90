"""What the shapes of the linears allow an adapter, from a model's headers (no torch)."""

from __future__ import annotations

from collections.abc import Mapping


def check_rank(key: str, rank: int, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where the rank of a key exceeds what a linear (outputs, inputs) has."""
    for name, shape in linears.items():
        if rank > min(shape):
            raise ValueError(
                f"{key}={rank} exceeds min(inputs, outputs) = {min(shape)} of {name}; "
                f"set {key}={min(shape)} or lower"
            )


def check_groups(key: str, groups: int, linears: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where the groups of a key do not divide the outputs of a linear."""
    for name, shape in linears.items():
        if shape[0] % groups:
            raise ValueError(
                f"{key}={groups} does not divide the {shape[0]} outputs of {name}; "
                f"set {key} to a divisor of them"
            )
