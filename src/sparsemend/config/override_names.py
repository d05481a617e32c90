"""The groups, members and keys that a command line may name, as Hydra lists them."""

from __future__ import annotations

from functools import cached_property

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.jobs import keys_in
from sparsemend.config.renamed import explain_override
from sparsemend.config.unknown import first_paragraph, last_part, unknown_key
from sparsemend.config.values import override_key
from sparsemend.errors import OverrideError, nearest

# how to give a path or a hub id, where a group's member was expected
BY_PATH = {"model": "model=local model.path={}"}


def is_search_line(line: str) -> bool:
    """Whether an override line sets the folders that configs are searched in."""
    return override_key(line) == "hydra.searchpath" and not line.startswith("~")


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
        # of a group of several members at once (logger) a key names its member: logger.wandb.mode
        return [
            name
            for number, name in enumerate(members)
            if f"members.{number}.{inner.removeprefix(f'{name}.')}" in keys
        ]

    def nested_members(self, group: str) -> list[str]:
        """The members of a group and of the groups inside it, as `inner/member`."""
        inner = [other for other in self.groups if other.startswith(f"{group}/")]
        nested = [
            f"{g.removeprefix(group + '/')}/{name}" for g in inner for name in self.members(g)
        ]
        return [*self.members(group), *nested]

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        return sorted(self._repository.get_group_options(group, kind))

    @cached_property
    def _repository(self) -> CachingConfigRepository:
        """The folders of the whole search path.

        Hydra's own `get_group_options` composes its part of the config anew for every group, of
        which a refusal asks for fifty.
        """
        assert isinstance(self.loader, ConfigLoaderImpl)
        return self.loader._parse_overrides_and_create_caching_repo(self.config_name, self.search)[
            1
        ]

    def check_group(self, override: Override) -> None:
        """Raise OverrideError unless every member that an override of a group names exists."""
        group = override.key_or_group
        if override.is_delete() or override.is_interval_sweep() or "." in group:
            return
        if not self.members(group):
            return  # a key, or no name at all: composing says which
        if _names_nothing(override):
            raise OverrideError(
                f"{override.input_line} names no {group}; leave {group} out for its default, or "
                f"choose one of {', '.join(self.members(group))}"
            )
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
                    + nearest(name, valid, part=last_part)
                    + f"all {inside} members: {', '.join(valid) or 'none'}\n"
                    f"`{self.command} --help` lists every group"
                )

    def compose(self, lines: list[str]) -> DictConfig:
        """The composed config with Hydra's own part; raises OverrideError on an unknown key."""
        lines = [line for line in lines if not is_search_line(line)]
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
                if gone := explain_override(key, lines):
                    return gone
                groups = [] if "." in key else self.groups
                message = unknown_key(override, keys, groups, self.members_with(key))
                return message + self._where_keys_are_listed(key)
        return first_paragraph(error)

    def _where_keys_are_listed(self, key: str) -> str:
        return (
            f"`{self.command} --help` lists the groups, `{self.command} --cfg job` every key; "
            f"+{key}=VALUE adds a new one"
        )


def _names_nothing(override: Override) -> bool:
    """Whether a choice is null or empty, or a list with such an entry, which Hydra cannot read."""
    value = override.value()
    if override.is_discrete_sweep():
        return False  # its entries are names, as text
    return value in (None, "") or (isinstance(value, list) and any(v in (None, "") for v in value))


def _members_named(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]
