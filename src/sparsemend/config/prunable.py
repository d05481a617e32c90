"""Which linears may lose weights: `prunable.include` and `prunable.exclude` of run.yaml (no torch).

A pattern is a glob (`*`, `?`, `[ab]`; `*` passes dots, case counts) that must match a linear's
whole name or all that follows one of its dots: `down_proj`, `self_attn.*`, `layers.0.mlp.*`.  A
linear is prunable where a pattern of include matches it (include null: always) and none of exclude.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig

from sparsemend.config.declared import declared_in
from sparsemend.config.locations import conf_folder
from sparsemend.errors import nearest

KEY = "prunable"
SHOWN = 12  # kinds of linears that a message lists
T = TypeVar("T")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@dataclass(frozen=True, kw_only=True)
class PrunableNames:
    """The patterns of one run; raises ValueError, from `check`, where they do not fit a model."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]

    @staticmethod
    def of(cfg: DictConfig) -> PrunableNames:
        """The patterns of a composed config."""
        include, exclude = cfg[KEY].include, cfg[KEY].exclude
        return PrunableNames(
            include=None if include is None else tuple(include), exclude=tuple(exclude)
        )

    def allow(self, name: str) -> bool:
        """Whether a linear may lose weights."""
        wanted = self.include is None or matches(self.include, name)
        return wanted and not matches(self.exclude, name)

    def without_dense(self, linears: Mapping[str, T]) -> dict[str, T]:
        """The entries of the prunable linears."""
        return {name: value for name, value in linears.items() if self.allow(name)}

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError on a pattern that matches none of these linears, and if none is left.

        The patterns that run.yaml brings may match nothing.
        """
        for key, patterns in ((f"{KEY}.include", self.include), (f"{KEY}.exclude", self.exclude)):
            for pattern in patterns or ():
                if pattern not in defaults() and not any(matches((pattern,), n) for n in names):
                    raise ValueError(_no_match(key, pattern, names))
        if names and not any(map(self.allow, names)):
            raise ValueError(
                f"{KEY}.include={_text(self.include)} and {KEY}.exclude={_text(self.exclude)} "
                f"leave none of the {len(names)} linears in the blocks to prune; take a pattern "
                f"out, the blocks hold {_kinds(names)}"
            )

    def routers_let_in(self, names: Iterable[str]) -> list[str]:
        """The linears that the patterns of run.yaml would leave dense and these do not."""
        return [name for name in names if self.allow(name) and matches(defaults(), name)]


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a pattern matches a linear's full name or all that follows one of its dots."""
    return any(_regex(pattern).match(name) for pattern in patterns)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?{translate(pattern)}", re.DOTALL)


@cache
def defaults() -> tuple[str, ...]:
    """The patterns of `prunable.exclude` in run.yaml."""
    default: Any = declared_in(conf_folder() / "run.yaml")[f"{KEY}.exclude"].default
    return tuple(default)


def kinds(names: Iterable[str]) -> list[str]:
    """The names, with `*` for the numbers of those that differ in numbers alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(NUMBER.sub("*", name), []).append(name)
    return [kind if len(same) > 1 else same[0] for kind, same in alike.items()]


def _no_match(key: str, pattern: str, names: Sequence[str]) -> str:
    if not pattern.strip():
        return (
            f"{key} has an empty pattern ({_text([pattern])}), which no name matches; take it out, "
            f"or name linears, the blocks hold {_kinds(names)}"
        )
    close = nearest(pattern, _tails(_in_a_block(names))).strip()
    hint = f"; {close}" if close else ""
    return f"{key}={pattern} matches no linear of this model{hint}; the blocks hold {_kinds(names)}"


def _in_a_block(names: Iterable[str]) -> list[str]:
    """The names without those of the blocks, each once."""
    starred = dict.fromkeys(NUMBER.sub("*", name) for name in names)
    return [name.partition("*.")[2] or name for name in starred]


def _tails(names: Iterable[str]) -> list[str]:
    """The names and what follows each of their dots."""
    parts = [name.split(".") for name in names]
    return [".".join(part[start:]) for part in parts for start in range(len(part))]


def _kinds(names: Sequence[str]) -> str:
    inside = _in_a_block(names)
    rest = f" and {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
    return ", ".join(inside[:SHOWN]) + rest


def _text(patterns: Sequence[str] | None) -> str:
    if patterns is None:
        return "null"
    return f"[{','.join(pattern if pattern.strip() else repr(pattern) for pattern in patterns)}]"
