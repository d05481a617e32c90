"""The command `sparsemend-bench`: a Hydra app on conf/bench.yaml."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import execution_whitelist
from omegaconf import DictConfig

from sparsemend.bench import preflight as bench_preflight
from sparsemend.cli.command import LOGGING_TARGETS, Command
from sparsemend.config.compose import search_line
from sparsemend.config.locations import conf_folder

CONFIG_NAME = "bench"


@hydra.main(
    config_path=str(conf_folder()),
    config_name=CONFIG_NAME,
    execution_whitelist=LOGGING_TARGETS,
)
def bench_job(cfg: DictConfig) -> None:
    """Run one job: check its config, then import the heavy modules and measure."""
    search = user_folders()
    bench_preflight.check(cfg, search)
    from sparsemend.bench.run import run

    # the list above is for logging; a method or pruner may come from any module of the user
    with execution_whitelist(None, reset=True):
        run(cfg, search)


def user_folders() -> list[str]:
    """The override that adds this job's --config-dir and hydra.searchpath to the search path."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [s.path for s in sources if s.schema == "file" and s.provider != "main"]
    return [search_line(folders)] if folders else []


def main() -> None:
    """Entry point of the console command."""
    Command("sparsemend-bench", CONFIG_NAME, bench_preflight.check).launch(bench_job)


if __name__ == "__main__":
    main()
