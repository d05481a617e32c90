"""Keep the rows of a long measurement while it runs, so that `resume=auto` goes on after them.

A file per part in the run folder's stages/, named for a hash of everything that decides the
numbers, written whole every EVERY seconds.  Rows do not depend on what else is measured, so that a
measurement in two attempts has the bits of an undisturbed one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsemend.files import replacing
from sparsemend.names import BEGUN

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds: what a kill costs at most
ROWS, BATCHES = "rows", "batches"


class UnfinishedRows:
    """The rows so far of the parts of one measurement."""

    def __init__(self, stages: Path, key: str) -> None:
        """stages: the run folder's stages/.  key: a hash of all that decides the rows."""
        self.folder, self.key = stages / BEGUN, key
        self.kept = monotonic()

    def begun(self, part: str) -> tuple[int, Tensor] | None:
        path = self._path(part)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                batches, rows = int(file.metadata()[BATCHES]), file.get_tensor(ROWS)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s cannot be read, measuring from the start: %s", path, error)
            return None
        log.info("%s goes on after %d batches of the earlier attempt", part, batches)
        return batches, rows

    def keep(self, part: str, batches: int, rows: Callable[[], Tensor]) -> None:
        """Write what is measured of a part if that was EVERY seconds ago.

        A disk that takes no more costs a later attempt its start, not this one the run.
        """
        now = monotonic()
        if now - self.kept < EVERY:
            return
        self.kept = now
        try:
            with replacing(self._path(part)) as partial:
                save_file({ROWS: rows().contiguous()}, partial, {BATCHES: str(batches)})
        except (OSError, SafetensorError) as error:
            log.warning("what is measured of %s was not kept: %s", part, error)

    def forget(self) -> None:
        """Remove what was kept: the measurement is finished, and kept whole."""
        for path in self.folder.glob(f"{self.key}-*"):
            path.unlink(missing_ok=True)

    def _path(self, part: str) -> Path:
        return self.folder / f"{self.key}-{part}.safetensors"
