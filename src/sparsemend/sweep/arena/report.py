"""Report an arena at the end of its sweep: a Hydra callback that experiment=arena adds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparsemend.sweep.arena.rows import read_arena
from sparsemend.sweep.arena.table import show, write
from sparsemend.sweep.read import wide_console

log = logging.getLogger(__name__)


class ArenaReport(Callback):
    """Shows and writes the table and plot of the finished rows, or prints why there is none."""

    def __init__(self, *, cost: str) -> None:
        """cost: what the plot has beside the perplexities, as of `sparsemend-tables arena`."""
        self.cost = cost

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            arena = read_arena([folder])
            show(arena)
            paths = write(arena, folder, self.cost)
        except ValueError as error:
            wide_console().print(str(error), markup=False, soft_wrap=True)
            return
        except Exception:  # the sweep's own report is still to come
            log.exception("no table of the arena; sparsemend-tables arena %s tries again", folder)
            return
        for path in paths:
            wide_console().print(f"arena: {path}", soft_wrap=True, highlight=False)
