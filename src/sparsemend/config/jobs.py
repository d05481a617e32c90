"""The jobs of a sweep as lists of override lines, and which keys each of them may set.

A sweep over members may set a key that only some of them have: of `method=none,lors
method.max_steps=2` the steps belong to LoRS, and the cell without repair leaves them out.  A key
of the command that no job has stays where it is, so that composing refuses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from sparsemend.config.values import override_key
from sparsemend.errors import OverrideError

Choices = tuple[str, ...]  # the override lines of a job that choose members


def expand(overrides: list[Override]) -> Iterator[list[str]]:
    """The jobs of a sweep as override lines: every choice and range, the start of an interval."""
    choices = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_discrete_sweep():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_interval_sweep():
            choices.append([f"{key}={override.value().start}"])  # type: ignore[union-attr]
        else:
            choices.append([str(override.input_line)])
    return (list(job) for job in itertools.product(*choices))


def keys_in(cfg: DictConfig, prefix: str = "") -> set[str]:
    """Every key of a config as a dotted path, inner ones too; values stay unresolved."""
    paths = set()
    for key, value in cfg.items_ex(resolve=False):
        path = f"{prefix}{key!s}"
        paths.add(path)
        if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing()):
            paths |= keys_in(value, f"{path}.")
    return paths


@dataclass(frozen=True)
class Cells:
    """The jobs of a sweep with the keys that each of them has."""

    jobs: list[list[str]]
    ignored: dict[str, str]  # a key that jobs left out -> their choices, which lack it

    @property
    def notice(self) -> str:
        """One line per key that jobs left out; empty where none did."""
        return "\n".join(
            f"{key} is left out of the cells of {choices}, which have no such key"
            for key, choices in self.ignored.items()
        )


def cells_of(
    jobs: Sequence[list[str]],
    is_choice: Callable[[str], bool],
    keys_of: Callable[[Choices], set[str]],
    stated: Collection[str] = (),
) -> Cells:
    """The jobs without the keys that another job has and they themselves lack.

    Jobs that are equal without such a key become one.  keys_of: the keys of the config that a job's
    choices of members give, asked once per combination of choices.  stated: keys that an experiment
    sweeps by itself and the command does not name; it may ask for a part that has none of them.
    """
    choices = [tuple(line for line in job if is_choice(line)) for job in jobs]
    if len(set(choices)) == 1 and not stated:
        return Cells(list(jobs), {})
    keys = {combination: keys_of(combination) for combination in dict.fromkeys(choices)}
    anywhere = set(stated).union(*keys.values())
    cells: list[list[str]] = []
    foreign: dict[str, None] = {}
    for job, combination in zip(jobs, choices, strict=True):
        lacking = _plain_keys(job, is_choice) & (anywhere - keys[combination])
        cell = [line for line in job if override_key(line) not in lacking]
        if not lacking or cell not in cells:
            cells.append(cell)
        foreign |= dict.fromkeys(sorted(lacking))
    return Cells(cells, {key: _who_lacks(key, keys) for key in foreign})


def stated_keys(
    params: Iterable[str], lines: Iterable[str], is_choice: Callable[[str], bool]
) -> set[str]:
    """The keys that an experiment sweeps and a command does not name.

    None where the command asks for no part of the swept members: then a key that no job has is an
    error.  params: the swept keys of the experiment; lines: the overrides of the command.
    """
    swept, asked = set(params), {override_key(line): line for line in lines}
    part = any(is_choice(asked[key]) for key in swept & asked.keys())
    return swept - asked.keys() if part else set()


def defer(
    overrides: Iterable[Override], is_choice: Callable[[str], bool], keys: Sequence[set[str]]
) -> list[str]:
    """A sweep's lines with each key that only some of `keys` hold as a choice of one value.

    Hydra sets the plain keys of a sweep in a config that knows none of the swept members, too;
    choices it leaves to the jobs.  Raises OverrideError on null, which no choice can hold.
    """
    everywhere = keys[0].intersection(*keys)
    partial = keys[0].union(*keys) - everywhere
    deferred = []
    for override in overrides:
        line = str(override.input_line)
        key, _, value = line.partition("=")
        plain = key in partial and not is_choice(line) and not override.is_sweep_override()
        if plain and override.value() is None:
            raise OverrideError(
                f"{line} is for some of the swept members only, where null cannot be given; leave "
                "it out, or sweep over the members that have the key"
            )
        deferred.append(f"{key}=choice({value})" if plain else line)
    return deferred


def _plain_keys(job: Iterable[str], is_choice: Callable[[str], bool]) -> set[str]:
    """The keys that a job sets and does not add or delete."""
    return {
        override_key(line)
        for line in job
        if not line.startswith(("+", "~")) and not is_choice(line)
    }


def _who_lacks(key: str, keys: dict[Choices, set[str]]) -> str:
    """The choices of the jobs without `key` that no job with it has, or `some members`."""
    having = {line for choices, present in keys.items() if key in present for line in choices}
    lacking = {line: None for choices, k in keys.items() if key not in k for line in choices}
    return ", ".join(line for line in lacking if line not in having) or "some members"
