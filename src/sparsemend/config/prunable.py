"""Which linears may lose weights: `prunable.include` and `prunable.exclude` of run.yaml (no torch).

A pattern is a glob (`*`, `?`, `[ab]`; `*` passes dots, case counts) that must match a linear's
whole name or all that follows one of its dots: `down_proj`, `self_attn.*`, `layers.0.mlp.*`.  A
linear has two names, that in the checkpoint and that of its module in memory, and a pattern may be
of either; the name of a tensor of several linears is a name of each.  A linear is prunable where a
pattern of include matches it (include null: always) and none of exclude.
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
from sparsemend.config.kinds import star_numbers
from sparsemend.config.locations import conf_folder
from sparsemend.errors import nearest

KEY = "prunable"
SHOWN = 12  # kinds of linears that a message lists
T = TypeVar("T")
SEVERAL = " + "  # between the tensors that hold one linear


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

    def allow(self, *names: str) -> bool:
        """Whether a linear may lose weights, by the names that it has."""
        spoken = [other for name in names for other in _names_of(name)]
        wanted = self.include is None or any(matches(self.include, name) for name in spoken)
        return wanted and not any(matches(self.exclude, name) for name in spoken)

    def without_dense(self, linears: Mapping[str, T]) -> dict[str, T]:
        """The entries of the prunable linears, where names in files are all that is there."""
        return {name: value for name, value in linears.items() if self.allow(name)}

    def check(self, saved: Mapping[str, str]) -> None:
        """Raise ValueError on a pattern that matches none of these linears, and if none is left.

        saved: module name -> saved name.  The patterns that run.yaml brings may match nothing.
        """
        for key, pattern in self.patterns_without_match(saved):
            raise ValueError(_no_match(key, pattern, saved))
        if saved and not any(self.allow(*names) for names in saved.items()):
            raise ValueError(
                f"{KEY}.include={_text(self.include)} and {KEY}.exclude={_text(self.exclude)} "
                f"leave none of the {len(saved)} linears in the blocks to prune; take a pattern "
                f"out, the blocks hold {_blocks_hold(saved)}"
            )

    def patterns_without_match(self, saved: Mapping[str, str]) -> list[tuple[str, str]]:
        """(key, pattern) of those that match none of these linears, but for those of run.yaml."""
        keys = ((f"{KEY}.include", self.include or ()), (f"{KEY}.exclude", self.exclude))
        spoken = {other for names in saved.items() for name in names for other in _names_of(name)}
        return [
            (key, pattern)
            for key, patterns in keys
            for pattern in patterns
            if pattern not in defaults() and not any(matches((pattern,), n) for n in spoken)
        ]

    def routers_let_in(self, saved: Mapping[str, str]) -> list[str]:
        """The modules that the patterns of run.yaml would leave dense and these do not.

        saved: module name -> saved name.
        """
        usual = PrunableNames(include=None, exclude=defaults())
        return [n for n, other in saved.items() if self.allow(n, other) > usual.allow(n, other)]


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a pattern matches a linear's full name or all that follows one of its dots.

    A name itself matches too, though it has brackets, as that of one expert of a tensor.
    """
    return any(
        _regex(pattern).match(name) or f".{name}".endswith(f".{pattern}") for pattern in patterns
    )


def _names_of(name: str) -> set[str]:
    """A name, and those of the tensors that it says the linear is a part of."""
    tensors = name.split(SEVERAL)
    return {name, *tensors, *(tensor.partition("[")[0] for tensor in tensors)}


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?{translate(pattern)}", re.DOTALL)


@cache
def defaults() -> tuple[str, ...]:
    """The patterns of `prunable.exclude` in run.yaml."""
    default: Any = declared_in(conf_folder() / "run.yaml")[f"{KEY}.exclude"].default
    return tuple(default)


def _no_match(key: str, pattern: str, saved: Mapping[str, str]) -> str:
    held = _blocks_hold(saved)
    if not pattern.strip():
        return (
            f"{key} has an empty pattern ({_text([pattern])}), which no name matches; take it out, "
            f"or name linears, the blocks hold {held}"
        )
    names = [name for both in saved.items() for name in both]
    close = nearest(pattern, _tails(_in_a_block(names))).strip()
    hint = f"; {close}" if close else ""
    return f"{key}={pattern} matches no linear of this model{hint}; the blocks hold {held}"


def _in_a_block(names: Iterable[str]) -> list[str]:
    """The names without those of the blocks, each once."""
    kinds = dict.fromkeys(star_numbers(name) for name in names)
    return list(dict.fromkeys(kind.partition("*.")[2] or kind for kind in kinds))


def _tails(names: Iterable[str]) -> list[str]:
    """The names and what follows each of their dots."""
    parts = [name.split(".") for name in names]
    return [".".join(part[start:]) for part in parts for start in range(len(part))]


def _blocks_hold(saved: Mapping[str, str]) -> str:
    """The kinds of linears in the blocks, and in memory those that have other names there."""
    inside = _in_a_block(saved.values())
    others = [name for name in _in_a_block(saved) if name not in inside]
    return _some(inside) + (f", in memory {_some(others)}" if others else "")


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _text(patterns: Sequence[str] | None) -> str:
    if patterns is None:
        return "null"
    return f"[{','.join(pattern if pattern.strip() else repr(pattern) for pattern in patterns)}]"
