"""The command `sparsemend`: a Hydra app on conf/run.yaml."""

from __future__ import annotations

import hydra
from hydra.utils import execution_whitelist
from omegaconf import DictConfig

from sparsemend import preflight
from sparsemend.command import LOGGING_TARGETS, Command
from sparsemend.locations import conf_folder

CONFIG_NAME = "run"


@hydra.main(
    config_path=str(conf_folder()),
    config_name=CONFIG_NAME,
    execution_whitelist=LOGGING_TARGETS,
)
def run_job(cfg: DictConfig) -> float:
    """One job: check, then import what is heavy and run."""
    preflight.check(cfg)
    from sparsemend.run import run

    # the list above is for logging; a method or pruner may come from any module of the user's
    with execution_whitelist(None, reset=True):
        return run(cfg)


def main() -> None:
    """Entry point of the console command."""
    Command("sparsemend", CONFIG_NAME, lambda cfg, search: preflight.check(cfg)).launch(run_job)


if __name__ == "__main__":
    main()
