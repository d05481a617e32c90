"""Check command-line overrides by name: a typo fails with the nearest valid names.

Hydra composes in 0.1 to 0.2 s and needs nothing heavy.  The jobs of a sweep are composed once per
choice of members, and each job's values are set in a copy of that, so that a wrong name in the last
of a thousand jobs is refused before the first one runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.jobs import Choices, cells_of, defer, expand, keys_in
from sparsemend.config.unknown import first_paragraph, nearest, unknown_key
from sparsemend.config.values import override_key
from sparsemend.errors import OverrideError

# how to give a path or a hub id, where a group's member was expected
BY_PATH = {"model": "model=local model.path={}"}


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for."""

    configs: list[DictConfig]  # of its jobs
    sweep: bool
    lines: list[str]  # the overrides as Hydra has to be given them


def compose_jobs(
    lines: list[str],
    *,
    conf: Path,
    config_name: str,
    extra: Path | None,
    multirun: bool,
    command: str,
) -> tuple[list[DictConfig], bool]:
    """The configs of the jobs asked for, and whether they are a sweep: see `compose_command`."""
    composed = compose_command(
        lines,
        conf=conf,
        config_name=config_name,
        extra=extra,
        multirun=multirun,
        command=command,
    )
    return composed.configs, composed.sweep


def compose_command(
    lines: list[str],
    *,
    conf: Path,
    config_name: str,
    extra: Path | None,
    multirun: bool,
    command: str,
) -> CommandLine:
    """Compose the jobs that override lines ask for.

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
        if multirun or modes[-1:] == ["MULTIRUN"]:
            return _compose_sweep(names, lines, overrides)
        return CommandLine([names.compose(lines)], False, lines)


def _compose_sweep(names: Names, lines: list[str], overrides: list[Override]) -> CommandLine:
    configs = SweepConfigs(names)
    # Hydra begins a sweep with a config of what does not vary
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    begin = tuple(filter(names.is_choice, fixed))
    jobs = list(expand(configs.with_params(begin, overrides)))
    cells = cells_of(jobs, names.is_choice, configs.keys_of)
    choices = [begin, *(tuple(filter(names.is_choice, job)) for job in cells.jobs)]
    keys = [configs.keys_of(combination) for combination in dict.fromkeys(choices)]
    return CommandLine(
        configs=[configs.compose(job) for job in cells.jobs],
        sweep=True,
        lines=defer(lines, names.is_choice, keys),
    )


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


class SweepConfigs:
    """The configs of a sweep's jobs, composed once per choice of members."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.composed: dict[Choices, DictConfig] = {}
        self.parsed: dict[str, Override] = {}

    def config_of(self, choices: Choices) -> DictConfig:
        """The config that choices of members give, Hydra's part included; not to be changed."""
        if choices not in self.composed:
            self.composed[choices] = self.names.compose_all(list(choices))
        return self.composed[choices]

    def keys_of(self, choices: Choices) -> set[str]:
        """The keys of that config."""
        return keys_in(self.config_of(choices))

    def compose(self, job: list[str]) -> DictConfig:
        """One job's config without Hydra's part; raises OverrideError on an unknown key."""
        choices = tuple(filter(self.names.is_choice, job))
        cfg = copy.deepcopy(self.config_of(choices))
        with open_dict(cfg):
            del cfg["hydra"]
        values = [line for line in job if line not in choices]
        for line in values:
            if line not in self.parsed:
                (self.parsed[line],) = self.names.parse([line])
        try:
            overrides = [self.parsed[line] for line in values]
            ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise OverrideError(self.names.explain(job, error)) from error
        return cfg

    def with_params(self, choices: Choices, overrides: list[Override]) -> list[Override]:
        """The overrides that an experiment's sweeper brings, then those of the sweep, as in Hydra.

        choices: those that are not swept.  An override of the command line replaces the
        experiment's of the same key, in its place.
        """
        params = self.config_of(choices).hydra.sweeper.get("params") or {}
        brought = self.names.parse([f"{key}={value}" for key, value in params.items()])
        merged = {override.get_key_element(): override for override in brought}
        merged |= {override.get_key_element(): override for override in overrides}
        for override in brought:
            self.names.check_group(override)
        return list(merged.values())


class Names:
    """The groups, members and keys that a command line may name."""

    def __init__(
        self, loader: ConfigLoader, config_name: str, search: list[str], command: str
    ) -> None:
        self.loader, self.config_name = loader, config_name
        self.search, self.command = search, command
        self.known_groups: dict[str, bool] = {}  # by key

    def parse(self, lines: list[str]) -> list[Override]:
        """The overrides in Hydra's grammar."""
        try:
            return OverridesParser.create(self.loader).parse_overrides(lines)
        except HydraException as error:
            raise OverrideError(
                f"{first_paragraph(error)}\nan override reads key=value; quote values that hold "
                "= , [ ] or blanks, for example 'data.separator=\"a,b\"'"
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

    def is_group(self, key: str) -> bool:
        """Whether a key, or a group's name, is that of a group."""
        if key not in self.known_groups:
            kinds = (ObjectType.CONFIG, ObjectType.GROUP)
            self.known_groups[key] = "." not in key and any(self._options(key, k) for k in kinds)
        return self.known_groups[key]

    def is_choice(self, line: str) -> bool:
        """Whether an override line chooses a member of a group, or is Hydra's own."""
        key = override_key(line).partition("@")[0]
        return key.startswith("hydra.") or self.is_group(key)

    def members_with(self, key: str) -> list[str]:
        """The members of the group in a key's first part that have the key."""
        group, _, inner = key.partition(".")
        if not inner or not self.is_group(group):
            return []
        members = self.members(group)
        lines = [f"+{group}@members.{number}={name}" for number, name in enumerate(members)]
        try:
            cfg = compose(self.config_name, [*lines, *self.search])
        except (HydraException, OmegaConfBaseException):
            return []  # members that choose others cannot stand side by side
        keys = keys_in(cfg)
        return [name for number, name in enumerate(members) if f"members.{number}.{inner}" in keys]

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
                if group in BY_PATH and "/" in member:
                    raise OverrideError(
                        f"unknown {group} {member!r} in {override.input_line}\n"
                        f"for a folder or hub id: {BY_PATH[group].format(member)}\n"
                        f"`{self.command} --help` lists every {group}"
                    )
                if not valid:  # a folder that does not exist: experiment=dsnt/table1
                    inside, name, valid = group, member, self.nested_members(group)
                raise OverrideError(
                    f"unknown {group} {member!r} in {override.input_line}\n"
                    + nearest(name, valid)
                    + f"all {inside} members: {', '.join(valid) or 'none'}\n"
                    f"`{self.command} --help` lists every group"
                )

    def compose(self, lines: list[str]) -> DictConfig:
        """The composed config without Hydra's own part; raises OverrideError on an unknown key."""
        cfg = self.compose_all(lines)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def compose_all(self, lines: list[str]) -> DictConfig:
        """The composed config with Hydra's own part; raises OverrideError on an unknown key."""
        lines = [line for line in lines if not _is_search(line)]
        try:
            return compose(self.config_name, [*lines, *self.search], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise OverrideError(self.explain(lines, error)) from error

    def explain(self, lines: list[str], error: Exception) -> str:
        """The message on lines that cannot be composed: an unknown name, or what Hydra says."""
        overrides = self.parse(lines)
        unknown = [o for o in overrides if not self.is_group(o.key_or_group)]
        chosen = [str(o.input_line) for o in overrides if o not in unknown]
        added = [str(o.input_line) for o in unknown if o.is_add() or o.is_force_add()]
        try:
            config = compose(
                self.config_name, [*chosen, *added, *self.search], return_hydra_config=True
            )
        except (HydraException, OmegaConfBaseException):
            return first_paragraph(error)
        keys = keys_in(config)
        for override in unknown:
            key = override.key_or_group
            if key not in keys and not override.is_add() and not override.is_force_add():
                groups = [] if "." in key else self.groups
                message = unknown_key(override, keys, groups, self.members_with(key))
                return message + self._where_keys_are_listed(key)
        return first_paragraph(error)

    def _where_keys_are_listed(self, key: str) -> str:
        return (
            f"`{self.command} --help` lists the groups, `{self.command} --cfg job` every key; "
            f"+{key}=VALUE adds a new one"
        )


def _members_named(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]
