"""Keep what a claim's cells measured in a small folder that goes with the sources.

What is kept is enough to write the pages again and to go on: copied back to `multirun/claims`, the
cells count as finished for the same command.  Masks, logs and the rates of single linears stay
behind, and what says where on the machine a cell ran.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.files import replacing, write_text
from sparsemend.names import RESULT, WINDOW_LOSSES
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.claims.claim import Claim
from sparsemend.sweep.claims.statements import RULES
from sparsemend.sweep.read import overrides_path


def keep(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Copy the measured cells to `folder/CLAIM/SWEEP/CELL`; return the folders of the sweeps.

    Raises ValueError where two sweeps would lie in one folder.
    """
    homes: dict[Path, Path] = {}
    for claim in claims:
        for run in (*claim.runs, *claim.diverged):
            sweep = run.folder.parent
            home = folder / claim.name / sweep.resolve().name
            if homes.setdefault(home, sweep) != sweep:
                raise ValueError(
                    f"{homes[home]} and {sweep} would both be kept in {home}; give one of them"
                )
            _keep_cell(run, home / run.folder.name)
    for home, sweep in homes.items():
        with replacing(home / RULES) as partial:
            OmegaConf.save(_only_rules(sweep / RULES), partial)
    return list(homes)


def _keep_cell(run: RunRecord, home: Path) -> None:
    content: dict[str, Any] = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
    content.pop("cache", None)
    content["sparsity"].pop("per_linear", None)
    copies = [overrides_path(run.folder), *(run.folder / WINDOW_LOSSES).glob("*.safetensors")]
    for path in copies:
        with replacing(home / path.relative_to(run.folder)) as partial:
            shutil.copyfile(path, partial)
    write_text(home / RESULT, json.dumps(content, separators=(",", ":")) + "\n")


def _only_rules(path: Path) -> DictConfig:
    """What `read_rules` reads of the config of a sweep."""
    config = OmegaConf.load(path)
    rules = OmegaConf.create()
    for key in ("hydra.callbacks.claim", "hydra.sweeper.params", "hydra.sweeper.choose"):
        OmegaConf.update(rules, key, OmegaConf.select(config, key), force_add=True)
    return rules
