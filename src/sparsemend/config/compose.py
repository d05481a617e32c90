"""Check command-line overrides by name: a typo fails with the nearest valid names.

Hydra composes in under 0.1 s and needs nothing heavy, so every job of a sweep over groups is
composed once before anything runs.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.values import override_key
from sparsemend.errors import OverrideError

JOBS = 64  # composed before a sweep starts, about 5 s; later jobs are checked when they start


def compose_jobs(
    lines: list[str],
    *,
    conf: Path,
    config_name: str,
    extra: Path | None,
    multirun: bool,
    command: str,
) -> tuple[list[DictConfig], bool]:
    """The configs of the (first) jobs asked for, and whether they are a sweep.

    extra: a folder searched beside `conf`, as by --config-dir; command: an error points to its
    --help.  Raises OverrideError on a name that does not exist.
    """
    if extra is not None and not extra.is_dir():
        raise OverrideError(f"--config-dir {extra} does not exist; give a folder of yaml files")
    with _config_loader(conf, command) as loader:
        names = Names(loader, config_name, search_lines(lines, extra), command)
        overrides = names.parse(lines)
        for override in overrides:
            names.check_group(override)
        modes = [o.value() for o in overrides if o.key_or_group == "hydra.mode"]
        sweep = multirun or modes[-1:] == ["MULTIRUN"]
        jobs = expand(names.with_params(lines, overrides)) if sweep else iter([lines])
        return [names.compose(job) for job in itertools.islice(jobs, JOBS)], sweep


@contextmanager
def _config_loader(conf: Path, command: str) -> Iterator[ConfigLoader]:
    """Hydra's config loader on `conf`; the Hydra of a running job is put back at the end."""
    instance = GlobalHydra.instance()
    running = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(conf), job_name=command):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield hydra.config_loader
    finally:
        GlobalHydra.instance().hydra = running


def search_lines(lines: list[str], extra: Path | None) -> list[str]:
    """The override that puts the user's own config folders on the search path; [] without any."""
    search = [line for line in lines if _is_search(line)][-1:]
    if extra is None:
        return search
    parsed = OverridesParser.create().parse_overrides(search)
    folders = parsed[0].value() if parsed else []
    assert isinstance(folders, list)
    return [search_line([*folders, str(extra.resolve())])]


def _is_search(line: str) -> bool:
    return override_key(line) == "hydra.searchpath" and not line.startswith("~")


def search_line(folders: list[str]) -> str:
    """The override that puts these config folders on the search path."""
    return f"hydra.searchpath={json.dumps(folders)}"


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


class Names:
    """The groups, members and keys that a command line may name."""

    def __init__(
        self, loader: ConfigLoader, config_name: str, search: list[str], command: str
    ) -> None:
        self.loader, self.config_name = loader, config_name
        self.search, self.command = search, command

    def parse(self, lines: list[str]) -> list[Override]:
        """The overrides in Hydra's grammar."""
        try:
            return OverridesParser.create(self.loader).parse_overrides(lines)
        except HydraException as error:
            raise OverrideError(
                f"{error}\nan override reads key=value; quote values that hold = , [ ] or blanks, "
                "for example 'data.separator=\"a,b\"'"
            ) from error

    @cached_property
    def groups(self) -> list[str]:
        """Every config group, nested ones as `parent/child`."""
        groups, parents = [], [""]
        while parents:
            parent = parents.pop()
            children = [f"{parent}/{name}" for name in self._options(parent, ObjectType.GROUP)]
            parents += [child.lstrip("/") for child in children]
            groups += [child.lstrip("/") for child in children]
        return sorted(groups)

    def members(self, group: str) -> list[str]:
        """The members of a group, on the whole search path; [] where it is not a group."""
        return self._options(group, ObjectType.CONFIG)

    def nested_members(self, group: str) -> list[str]:
        """The members of a group and of the groups inside it, as `inner/member`."""
        inner = [other for other in self.groups if other.startswith(f"{group}/")]
        nested = [
            f"{g.removeprefix(group + '/')}/{name}" for g in inner for name in self.members(g)
        ]
        return [*self.members(group), *nested]

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        return sorted(self.loader.get_group_options(group, kind, self.config_name, self.search))

    def check_group(self, override: Override) -> None:
        """Raise OverrideError unless every member that an override of a group names exists."""
        group = override.key_or_group
        if override.is_delete() or override.is_interval_sweep() or "." in group:
            return
        if not self.members(group):
            return  # a key, or no name at all: composing says which
        for member in _members_named(override):
            inside, _, name = f"{group}/{member.removesuffix('.yaml')}".rpartition("/")
            if name not in (valid := self.members(inside)):
                if _is_place(member) and group == "model":
                    raise OverrideError(
                        f"model={member} is a place, not a preset; give model=local "
                        f"model.path={member}"
                    )
                if not valid:  # a folder that does not exist: experiment=dsnt/table1
                    inside, name, valid = group, member, self.nested_members(group)
                raise OverrideError(
                    f"unknown {group} {member!r} in {override.input_line}\n"
                    + _nearest(name, valid)
                    + f"all {inside} members: {', '.join(valid) or 'none'}\n"
                    f"`{self.command} --help` lists every group"
                )

    def compose(self, lines: list[str]) -> DictConfig:
        """The composed config without Hydra's own part; raises OverrideError on an unknown key."""
        try:
            return compose(self.config_name, [*self._without_search(lines), *self.search])
        except (HydraException, OmegaConfBaseException) as error:
            raise OverrideError(self._explain(lines, error)) from error

    def with_params(self, lines: list[str], overrides: list[Override]) -> list[Override]:
        """The overrides that an experiment's sweeper brings, then those of the sweep, as in Hydra.

        One on the command line replaces the experiment's of the same key, in its place.
        """
        single = [line for job in itertools.islice(expand(overrides), 1) for line in job]
        try:
            cfg = compose(
                self.config_name,
                [*self._without_search(single), *self.search],
                return_hydra_config=True,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise OverrideError(self._explain(single, error)) from error
        params = cfg.hydra.sweeper.get("params") or {}
        brought = self.parse([f"{key}={value}" for key, value in params.items()])
        merged = {override.get_key_element(): override for override in brought}
        merged |= {override.get_key_element(): override for override in overrides}
        for override in brought:
            self.check_group(override)
        return list(merged.values())

    def _without_search(self, lines: list[str]) -> list[str]:
        return [line for line in lines if not _is_search(line)]

    def _explain(self, lines: list[str], error: Exception) -> str:
        groups = self.groups
        overrides = self.parse(self._without_search(lines))
        unknown = [o for o in overrides if o.package is None and o.key_or_group not in groups]
        chosen = [str(o.input_line) for o in overrides if o not in unknown]
        added = [str(o.input_line) for o in unknown if o.is_add() or o.is_force_add()]
        try:
            config = compose(
                self.config_name, [*chosen, *added, *self.search], return_hydra_config=True
            )
        except (HydraException, OmegaConfBaseException):
            return _first_paragraph(error)
        keys = _keys(config)
        for override in unknown:
            key = override.key_or_group
            if key not in keys and not override.is_add() and not override.is_force_add():
                return _unknown_key(override, keys, groups) + self._where_keys_are_listed(key)
        return _first_paragraph(error)

    def _where_keys_are_listed(self, key: str) -> str:
        return (
            f"`{self.command} --help` lists the groups, `{self.command} --cfg job` every key; "
            f"+{key}=VALUE adds a new one"
        )


def _is_place(member: str) -> bool:
    """Whether a name can only be a folder or a hub id, since a preset has no slash in it."""
    return "/" in member or member.startswith(("~", "."))


def _members_named(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]


def _keys(cfg: DictConfig, prefix: str = "") -> set[str]:
    """Every key of a config as a dotted path, inner ones too; values stay unresolved."""
    paths = set()
    for key, value in cfg.items_ex(resolve=False):
        path = f"{prefix}{key!s}"
        paths.add(path)
        if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing()):
            paths |= _keys(value, f"{path}.")
    return paths


def _unknown_key(override: Override, keys: set[str], groups: list[str]) -> str:
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
        + (_nearest(key, public) or _same_name(key, keys))
        + inside
    )


def _nearest(name: str, valid: list[str]) -> str:
    """A line with the closest of `valid` by last part, in which keys of one parent differ."""
    by_last = {other.rpartition(".")[2]: other for other in valid}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_last, n=3)
    return f"nearest: {', '.join(by_last[last] for last in close)}\n" if close else ""


def _same_name(key: str, keys: set[str]) -> str:
    """A line with the keys of that name in other places: method.max_steps for max_steps."""
    last = key.rpartition(".")[2]
    close = sorted(other for other in keys if other.rpartition(".")[2] == last)
    return f"nearest: {', '.join(close[:3])}\n" if close else ""


def _first_paragraph(error: Exception) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return f"{error}{cause}".split("\n\n")[0]
