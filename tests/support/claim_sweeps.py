"""Sweeps of a claim as a command leaves them, made up: rules, cells, cells that ended badly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from support import result_folders

from sparsemend.result.window_losses import write_losses
from sparsemend.sweep.read import overrides_of

METRIC, VALIDATION = "perplexity/test", "perplexity/validation"
STATEMENT = {
    "says": "rates that rise are better than equal ones",
    "ours": {"schedule": "atp"},
    "rival": {"schedule": "uniform"},
    "measure": METRIC,
    "at_most": 1.0,
    "source": "a paper, abstract",
    "published": [
        "atp/headline/llama2_7b/0.7/wanda/atp/none~atp_minus_uniform/wikitext2/perplexity_change"
    ],
}
DSNOT = {
    **STATEMENT,
    "says": "moving zeros helps",
    "ours": {"method": "dsnot"},
    "rival": {"method": "none"},
    "beside": ["dsnot/table1"],
}
KEY = "sparsity_schedule.common_difference"


def sweep(root: Path, *statements: dict[str, Any], key: str | None = None) -> Path:
    """A sweep's folder with the rules that its command left there."""
    root.mkdir(parents=True, exist_ok=True)
    callbacks = {"claim": {"statements": list(statements)}}
    sweeper = {"params": {"seed": "0,1", "sparsity": "0.6"}, "choose": {"key": key, "seed": 0}}
    hydra = {"callbacks": callbacks, "sweeper": sweeper}
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), root / "multirun.yaml")
    return root


def cell(folder: Path, *, claim: str = "made_up", validation: float = 0.0, **given: Any) -> Path:
    """A finished cell with 8 windows, whose losses differ by window alone."""
    content = result_folders.result(**given)
    content["config"]["claim"] = claim
    content["metrics"]["repaired"][VALIDATION] = validation
    content |= {"seconds": 360.0, "repair": {"steps": 4}}
    result_folders.write(folder, content)
    (folder / ".hydra").mkdir()
    lines = ["experiment=claims/made_up", f"seed={content['config']['seed']}"]
    lines += ["sparsity=0.6", *([] if claim == "made_up" else ["data=text"])]
    OmegaConf.save(OmegaConf.create(lines), folder / ".hydra" / "overrides.yaml")
    for state in ("pruned", "repaired"):
        mean = math.log(content["metrics"][state][METRIC])
        write_losses(folder, state, {METRIC: mean + torch.linspace(-0.5, 0.5, 8)})
    return folder


def rates(folder: Path, number: int, seed: int, difference: float | None, **values: Any) -> None:
    """A cell that prunes alone, with ATP's common difference or with equal rates."""
    schedule = "uniform" if difference is None else "atp"
    knobs = None if difference is None else {"common_difference": difference}
    values = {"repaired": values.get("pruned", 30.0), **values}
    cell(
        folder / str(number),
        seed=seed,
        method="none",
        schedule=schedule,
        schedule_knobs=knobs,
        **values,
    )


def collapse(folder: Path, state: str = "repaired") -> None:
    """Make a state's perplexity, and its losses, those of a model that gives NaN."""
    path = folder / "result.json"
    content = json.loads(path.read_text())
    content["metrics"][state][METRIC] = None
    path.write_text(json.dumps(content))
    write_losses(folder, state, {METRIC: torch.full((8,), math.nan)})


def override(folder: Path, *more: str) -> None:
    """Add lines to the overrides of a cell."""
    path = folder / ".hydra" / "overrides.yaml"
    OmegaConf.save(OmegaConf.create([*overrides_of(folder), *more]), path)


def failure(kind: str, message: str) -> dict[str, str]:
    return {"type": kind, "message": message, "traceback": ""}


def diverge(folder: Path) -> None:
    """Make a finished cell one whose training ended in a loss that is not finite."""
    path = folder / "result.json"
    content = json.loads(path.read_text())
    message = "loss is nan at step 3 of 64; lower method.learning_rate"
    content |= {"status": "failed", "error": failure("FloatingPointError", message)}
    content["metrics"].pop("repaired")
    path.write_text(json.dumps(content))
