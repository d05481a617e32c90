"""What an error says of a name that does not exist: the nearest ones, and where it does exist."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.override_parser.types import Override

from sparsemend.errors import nearest


def unknown_key(
    override: Override, keys: set[str], groups: Iterable[str], members: Iterable[str]
) -> str:
    """The message on an override of a key that is not in `keys`.

    groups: that could be meant by a key without a dot; members: of the key's group, that have it.
    """
    key = override.key_or_group
    parent, _, _ = key.rpartition(".")
    valid = {name for name in keys if name.rpartition(".")[0] == parent}
    if not parent:
        valid |= set(groups)
    what = f"unknown key {key!r}" if parent else f"unknown key or group {key!r}"
    public = sorted(name for name in valid if not name.rpartition(".")[2].startswith("_"))
    inside = f"all keys of {parent}: {', '.join(public)}\n" if parent and public else ""
    return (
        f"{what} in {override.input_line}\n"
        + _elsewhere(key, members)
        + (nearest(key, public, part=last_part) or _same_name(key, keys))
        + inside
    )


def last_part(key: str) -> str:
    """The part in which keys of one parent differ."""
    return key.rpartition(".")[2]


def _elsewhere(key: str, members: Iterable[str]) -> str:
    """A line with the other members of a key's group that have the key."""
    group, _, inner = key.partition(".")
    names = ", ".join(members)
    return f"{inner} is a key of {group}={names}\n" if names else ""


def _same_name(key: str, keys: set[str]) -> str:
    """A line with the keys of that name in other places: method.max_steps for max_steps.

    Those of the key's own group come first: logger.wandb.mode for logger.mode.
    """
    group, last = key.partition(".")[0], key.rpartition(".")[2]
    close = sorted(
        (other for other in keys if other.rpartition(".")[2] == last),
        key=lambda other: (other.partition(".")[0] != group, other),
    )
    return f"nearest: {', '.join(close[:3])}\n" if close else ""


def first_paragraph(error: Exception) -> str:
    """What an error of Hydra says first, without its links, which lead to pages of old versions."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    text = f"{error}{cause}".split("\n\n")[0]
    return "\n".join(line for line in text.splitlines() if "https://hydra.cc" not in line)
