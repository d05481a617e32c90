"""Report a claim at the end of its sweep: a Hydra callback that experiment=claims/... adds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparsemend.sweep.claims.page import write
from sparsemend.sweep.claims.published import published_lines
from sparsemend.sweep.claims.read import read_claims
from sparsemend.sweep.claims.statements import statements_of
from sparsemend.sweep.claims.verdict_line import verdict_lines
from sparsemend.sweep.read import wide_console

log = logging.getLogger(__name__)


class ClaimReport(Callback):
    """Prints the verdicts on the finished cells and writes their page, or says why not."""

    def __init__(self, *, statements: Sequence[Any]) -> None:
        """statements: of the claim; raises ValueError on one that is not whole, before any cell."""
        for statement in statements_of(statements):
            published_lines(statement)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        console = wide_console()
        try:
            claims = read_claims([folder])
            paths = write(claims, folder)
        except ValueError as error:
            console.print(str(error), markup=False, soft_wrap=True)
            return
        except Exception:  # the sweep's own report is still to come
            log.exception("no page of the claim; sparsemend-tables claims %s tries again", folder)
            return
        for line in (line for claim in claims for line in verdict_lines(claim)):
            console.print(line, markup=False, soft_wrap=True, highlight=False)
        for path in paths:
            console.print(f"claim: {path}", soft_wrap=True, highlight=False)
