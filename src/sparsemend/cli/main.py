"""The command `sparsemend`: a Hydra app on conf/run.yaml."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from hydra.utils import execution_whitelist
from omegaconf import DictConfig

from sparsemend.cli.command import LOGGING_TARGETS, Command
from sparsemend.config.compose import search_folders
from sparsemend.config.locations import conf_folder
from sparsemend.config.values import override_key
from sparsemend.preflight import check as preflight
from sparsemend.preflight.declared import check_declared
from sparsemend.preflight.device import check_device
from sparsemend.preflight.place import check_room
from sparsemend.sweep import cells as sweep
from sparsemend.sweep.arena.sweeper import ArenaSweeper
from sparsemend.sweep.checks import check_sweep
from sparsemend.sweep.claims.sweeper import ClaimSweeper

CONFIG_NAME = "run"
TARGETS = [
    *LOGGING_TARGETS,
    "sparsemend.sweep.report.SweepReport",
    "sparsemend.sweep.arena.report.ArenaReport",
    "sparsemend.sweep.claims.report.ClaimReport",
    "sparsemend.sweep.search.report.SearchReport",
]


@hydra.main(
    config_path=str(conf_folder()),
    config_name=CONFIG_NAME,
    execution_whitelist=TARGETS,
)
def run_job(cfg: DictConfig) -> float:
    """Run one job: check its config, then import the heavy modules; return its objective.

    A sweep outlives its failing cells.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep.end_with_command()
        folder = Path(HydraConfig.get().runtime.output_dir)
        return sweep.run_cell(cfg, folder, _check_job, _run)
    _check_job(cfg)
    return _run(cfg)


def _check_job(cfg: DictConfig) -> None:
    """Raise ValueError or OSError where a job that has started cannot work."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    check_declared(cfg, [folder for folder in folders if folder != conf_folder()])
    preflight.check(cfg)
    check_room(cfg, Path(HydraConfig.get().runtime.output_dir))


def _run(cfg: DictConfig) -> float:
    from sparsemend.run.run import run

    # the list above is for what Hydra constructs; a method may come from any module of the user
    with execution_whitelist(None, reset=True):
        return run(cfg)


def main() -> None:
    """Entry point of the console command."""
    _register_sweepers()
    command = Command(
        "sparsemend",
        CONFIG_NAME,
        check=check_run,
        check_sweep=check_sweep,
        if_interrupted="; the same command with resume=auto goes on from what is done",
    )
    command.launch(run_job)


def check_run(cfg: DictConfig, search: list[str]) -> None:
    """Raise ValueError or OSError where a single run cannot work here.

    search: the override lines that put the user's own config folders on the search path.
    """
    if cfg.get("search") is not None:
        raise ValueError("a search is a sweep; add -m: sparsemend -m +search=...")
    check_declared(cfg, search_folders(search))
    check_device(cfg)
    preflight.check(cfg)


def _register_sweepers() -> None:
    """Register the sweepers of this command with Hydra."""
    Plugins.instance().register(ArenaSweeper)
    Plugins.instance().register(ClaimSweeper)
    if any(override_key(argument) == "search" for argument in sys.argv):
        from sparsemend.sweep.search.sweeper import SearchSweeper

        Plugins.instance().register(SearchSweeper)


if __name__ == "__main__":
    main()
