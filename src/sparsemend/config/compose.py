"""Check command-line overrides by name: a typo fails with the nearest valid names.

Hydra composes in 0.1 to 0.2 s and needs nothing heavy.  The jobs of a sweep are composed once per
choice of members, and each job's values are set in a copy of that, so that a wrong name in the last
of a thousand jobs is refused before the first one runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.declaration import text_of
from sparsemend.config.jobs import Choices, cells_of, defer, expand, keys_in, stated_keys
from sparsemend.config.locations import conf_folder
from sparsemend.config.override_names import Names, is_search_line
from sparsemend.errors import OverrideError

# where the cells of a sweep lie in its folder, and what Hydra writes into each
CELL, OVERRIDES = "${hydra:job.num}", ".hydra"


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for."""

    configs: list[DictConfig]  # of its jobs
    sweep: bool
    lines: list[str]  # the overrides as Hydra has to be given them
    folder: Path | None  # that the run, or the sweep, writes into; None where only Hydra knows


def compose_command(
    lines: list[str],
    *,
    config_name: str = "run",
    command: str = "sparsemend",
    extra: Path | None = None,
    multirun: bool = False,
) -> CommandLine:
    """Compose the jobs that override lines ask for.

    command: an error points to its --help.  extra: a folder searched beside conf/, as by
    --config-dir.  Raises OverrideError on a name that does not exist.
    """
    if extra is not None and not extra.is_dir():
        raise OverrideError(f"--config-dir {extra} does not exist; give a folder of yaml files")
    with _config_loader(command) as loader:
        names = Names(loader, config_name, search_lines(lines, extra), command)
        overrides = names.parse(lines)
        for override in overrides:
            names.check_group(override)
        modes = [o.value() for o in overrides if o.key_or_group == "hydra.mode"]
        if multirun or modes[-1:] == ["MULTIRUN"]:
            return _compose_sweep(names, overrides)
        cfg = names.compose(lines)
        folder = folder_of(cfg.hydra.run)
        with open_dict(cfg):
            del cfg["hydra"]
        return CommandLine([cfg], False, lines, folder)


def folder_of(place: DictConfig) -> Path | None:
    """The `dir` of hydra.run or hydra.sweep, None where it is made of what only a job has."""
    try:
        return Path(place.dir)
    except (OmegaConfBaseException, ValueError):
        return None


def _compose_sweep(names: Names, overrides: list[Override]) -> CommandLine:
    configs = SweepConfigs(names)
    # Hydra begins a sweep with a config of what does not vary
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    begin = tuple(filter(names.is_choice, fixed))
    jobs = list(expand(configs.with_params(begin, overrides)))
    asked = [str(override.input_line) for override in overrides]
    stated = stated_keys(configs.params_of(begin), asked, names.is_choice)
    cells = cells_of(jobs, names.is_choice, configs.keys_of, stated)
    choices = [begin, *(tuple(filter(names.is_choice, job)) for job in cells.jobs)]
    for combination in dict.fromkeys(choices):
        check_places(configs.config_of(combination).hydra)
    keys = [configs.keys_of(combination) for combination in dict.fromkeys(choices)]
    places = [Path(str(o.value())) for o in overrides if o.key_or_group == "hydra.sweep.dir"]
    return CommandLine(
        configs=[configs.compose(job) for job in cells.jobs],
        sweep=True,
        lines=defer(overrides, names.is_choice, keys),
        folder=places[-1] if places else folder_of(configs.config_of(begin).hydra.sweep),
    )


def check_places(hydra: DictConfig) -> None:
    """Raise OverrideError where a sweep that is reported would not find its cells.

    hydra: Hydra's part of a job's config.  The table, a resumed sweep and a search look for cells
    by their numbers and for the overrides that Hydra writes there.
    """
    if (hydra.get("callbacks") or {}).get("sweep") is None:
        return
    subdir = dict(hydra.sweep.items_ex(resolve=False))["subdir"]
    if subdir != CELL:
        raise OverrideError(
            f"hydra.sweep.subdir={subdir} would hide the cells of this sweep, which are found by "
            f"their numbers; leave it at {CELL}, summary.csv says what each number is"
        )
    if hydra.output_subdir != OVERRIDES:
        raise OverrideError(
            f"hydra.output_subdir={text_of(hydra.output_subdir)} would hide the cells of this "
            f"sweep, whose overrides are read from there; leave it at {OVERRIDES}"
        )


@contextmanager
def _config_loader(command: str) -> Iterator[ConfigLoader]:
    """Hydra's config loader on conf/; the Hydra of a running job is put back at the end."""
    instance = GlobalHydra.instance()
    running = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(conf_folder()), job_name=command):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield hydra.config_loader
    finally:
        GlobalHydra.instance().hydra = running


def search_lines(lines: list[str], extra: Path | None) -> list[str]:
    """The override that puts the user's own config folders on the search path; [] without any."""
    search = [line for line in lines if is_search_line(line)][-1:]
    if extra is None:
        return search
    parsed = OverridesParser.create().parse_overrides(search)
    folders = parsed[0].value() if parsed else []
    assert isinstance(folders, list)
    return [search_line([*folders, str(extra.resolve())])]


def search_line(folders: list[str]) -> str:
    """The override that puts these config folders on the search path."""
    quoted = (QuotedString(folder, Quote.single).with_quotes() for folder in folders)
    return f"hydra.searchpath=[{','.join(quoted)}]"


def search_folders(search: list[str]) -> list[Path]:
    """The folders that the override of the search path names; packages (pkg://) are left out."""
    parsed = OverridesParser.create().parse_overrides(search)
    value = parsed[0].value() if parsed else []
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    return [Path(name.removeprefix("file://")) for name in names if not name.startswith("pkg://")]


class SweepConfigs:
    """The configs of a sweep's jobs, composed once per choice of members."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.composed: dict[Choices, DictConfig] = {}
        self.parsed: dict[str, Override] = {}

    def config_of(self, choices: Choices) -> DictConfig:
        """The config that choices of members give, Hydra's part included; not to be changed."""
        if choices not in self.composed:
            self.composed[choices] = self.names.compose(list(choices))
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

    def params_of(self, choices: Choices) -> dict[str, str]:
        """What the experiment's sweeper brings: swept key -> values."""
        params = self.config_of(choices).hydra.sweeper.get("params") or {}
        return {str(key): str(value) for key, value in params.items()}

    def with_params(self, choices: Choices, overrides: list[Override]) -> list[Override]:
        """The overrides that an experiment's sweeper brings, then those of the sweep, as in Hydra.

        choices: those that are not swept.  An override of the command line replaces the
        experiment's of the same key, in its place.
        """
        params = self.params_of(choices)
        brought = self.names.parse([f"{key}={value}" for key, value in params.items()])
        merged = {override.get_key_element(): override for override in brought}
        merged |= {override.get_key_element(): override for override in overrides}
        for override in brought:
            self.names.check_group(override)
        return list(merged.values())
