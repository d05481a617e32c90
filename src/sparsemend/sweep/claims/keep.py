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

from sparsemend.files import replacing_folder, write_text
from sparsemend.names import RESULT, WINDOW_LOSSES
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.claims.claim import Claim
from sparsemend.sweep.claims.statements import RULES
from sparsemend.sweep.read import overrides_path

KEPT = (".hydra", RESULT, WINDOW_LOSSES)


def keep(claims: Sequence[Claim], folder: Path) -> list[Path]:
    """Copy the measured cells to `folder/CLAIM/SWEEP/CELL`; return the folders of the sweeps.

    A sweep's folder there is replaced whole.  Raises ValueError, and changes nothing, where two
    sweeps would lie in one folder, where a sweep lies there itself, and where cells lie there that
    were not read now.
    """
    homes: dict[Path, Path] = {}
    cells: dict[Path, list[RunRecord]] = {}
    for claim in claims:
        for run in (*claim.runs, *claim.diverged):
            sweep = run.folder.parent
            home = folder / claim.name / sweep.resolve().name
            if home.resolve() == sweep.resolve():
                raise ValueError(f"{sweep} is itself where its cells would be kept; give another")
            if homes.setdefault(home, sweep) != sweep:
                raise ValueError(
                    f"{homes[home]} and {sweep} would both be kept in {home}; give one of them"
                )
            cells.setdefault(home, []).append(run)
    for home, runs in cells.items():
        _check_home(home, {run.folder.name for run in runs})
    for home, runs in cells.items():
        with replacing_folder(home) as partial:
            for run in runs:
                _keep_cell(run, partial / run.folder.name)
            OmegaConf.save(_only_rules(homes[home] / RULES), partial / RULES)
    return list(homes)


def _check_home(home: Path, names: set[str]) -> None:
    """Raise ValueError where a folder of kept cells holds what would be lost."""
    cells = [path for path in home.glob("*") if path.is_dir()]
    if more := sorted({path.name for path in cells} - names):
        raise ValueError(
            f"{home} holds cell {more[0]} ({len(more)} such), which is not among the folders that "
            "are read; copy it back to its sweep first, or remove it"
        )
    for path in (inner for cell in cells for inner in cell.iterdir()):
        if path.name not in KEPT:
            raise ValueError(f"{path} is no part of a kept cell; give --keep another folder")


def _keep_cell(run: RunRecord, home: Path) -> None:
    content: dict[str, Any] = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
    content.pop("cache", None)
    content["sparsity"].pop("per_linear", None)
    if content.get("error"):
        content["error"].pop("traceback", None)
    for path in overrides_path(run.folder), *(run.folder / WINDOW_LOSSES).glob("*.safetensors"):
        copied = home / path.relative_to(run.folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    write_text(home / RESULT, json.dumps(content, separators=(",", ":")) + "\n")


def _only_rules(path: Path) -> DictConfig:
    """What `read_rules` reads of the config of a sweep."""
    config = OmegaConf.load(path)
    rules = OmegaConf.create()
    for key in ("hydra.callbacks.claim", "hydra.sweeper.params", "hydra.sweeper.choose"):
        OmegaConf.update(rules, key, OmegaConf.select(config, key), force_add=True)
    return rules
