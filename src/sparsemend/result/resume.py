"""Choose the unfinished run that a run continues, from result files alone (no torch).

`resume=auto` takes the newest unfinished run of the same configuration; `resume=FOLDER` that run
and no other.  A configuration is compared by a hash of what changes the numbers.

Four things are worth continuing from: the checkpoint of a fit, the files that a method which
works in parts (blocks, rounds) leaves in `repair/`, one for every part it has finished, the stages
in `stages/` (the pruned model, measurements) that an attempt has finished, or begun to measure, and
in `blocks/` the blocks of a streamed model that it has changed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemend.config.renamed import check_stored
from sparsemend.config.values import config_hash, differences
from sparsemend.names import (
    ADAPTER,
    BEGUN,
    BLOCKS,
    CHECKPOINTS,
    CURVES,
    HARNESS,
    HIDDEN_STATES,
    LAST_CHECKPOINT,
    MASKS,
    MODEL,
    PARTS,
    RESULT,
    SPEED,
    STAGES,
    TENSORBOARD,
    WANDB_RUN_ID,
    WINDOW_LOSSES,
)
from sparsemend.result.folder import alive, load_result, read_result, this_process

log = logging.getLogger(__name__)

# entries of a run folder besides result.json and model/
LEFT = (
    PARTS,
    STAGES,
    BLOCKS,
    HIDDEN_STATES,
    CHECKPOINTS,
    CURVES,
    f"{CURVES}-*",
    TENSORBOARD,
    WINDOW_LOSSES,
    HARNESS,
    SPEED,
    ADAPTER,
    MASKS,
    WANDB_RUN_ID,
)
UNFINISHED = ("running", "failed", "interrupted")


def run_folder(asked: str | None, config: Mapping[str, Any], fresh: Path) -> tuple[Path, bool]:
    """(run folder, whether there is work in it to continue): a resumed run keeps its folder.

    asked: the config's `resume`.  fresh: the folder a new run would have; where it was named with
    hydra.run.dir and holds a run that is alive, or an unfinished one of another configuration where
    that should be resumed, it is refused.
    """
    if asked is None:
        result = read_result(fresh)
        if result is not None and result.process.host == this_process().host:
            check_ended(fresh)  # one on another machine may be dead, and is not asked for
        return fresh, False
    if asked != "auto":
        check_resumable(Path(asked), config)
        return Path(asked), True
    folder = find_unfinished(_search_root(fresh, str(config.get("name"))), config_hash(config))
    if folder is None:
        if (fresh / RESULT).exists():
            check_same_config(fresh, config)
            check_ended(fresh)
        log.info("resume=auto: no unfinished run of this config, starting afresh")
        return fresh, False
    log.info("resuming in %s", folder)
    return folder, _has_work(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the fit in this run folder, None where there is none."""
    path = folder / LAST_CHECKPOINT
    return path if path.exists() else None


def forget_work(folder: Path) -> None:
    """Remove what an earlier run left in a folder that a fresh one is about to use.

    That is more than a later attempt would continue from: an export, an adapter or curves that
    this run does not write again would be taken for its own.
    """
    if not (folder / RESULT).exists():
        return
    for pattern in LEFT:
        for path in folder.glob(pattern):
            path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
    if (folder / MODEL / MASKS).exists():  # an export, and not a user's own model
        shutil.rmtree(folder / MODEL)


def cell_folder(config: Mapping[str, Any], folder: Path) -> tuple[Path, bool]:
    """(folder, whether there is work to continue) of a sweep's cell, which keeps its folder."""
    result = read_result(folder)
    if result is None:
        return folder, False
    same = result.config_hash == config_hash(config) and result.status in UNFINISHED
    if same and _has_work(folder):
        log.info("continuing what is done of it: %s", folder)
        return folder, True
    return folder, False


def check_resumable(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise unless `folder` holds an unfinished run of this very config, with work to continue."""
    if not (folder / RESULT).exists():
        raise FileNotFoundError(f"resume={folder}: no {RESULT} in it; give a run folder")
    check_same_config(folder, config)
    if load_result(folder / RESULT).finished:
        raise ValueError(f"resume={folder}: that run is finished; drop resume to run it again")
    if not _has_work(folder):
        raise FileNotFoundError(
            f"resume={folder}: neither {LAST_CHECKPOINT} nor a file in {PARTS}/ or {STAGES}/ "
            "is there, the run ended before it finished a stage; drop resume to start afresh"
        )


def check_same_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError naming the differing keys unless the run in `folder` has this config."""
    stored = load_result(folder / RESULT).config
    check_stored(stored, folder)
    differing_keys = differences(stored, config)
    if differing_keys:
        shown = "; ".join(differing_keys[:8]) + ("; ..." if len(differing_keys) > 8 else "")
        raise ValueError(
            f"{folder} holds a run of another configuration ({shown}); give its own overrides, "
            "or another folder"
        )


def check_ended(folder: Path) -> None:
    """Raise ValueError where the run in `folder` may still be alive."""
    result = load_result(folder / RESULT)
    if alive(result.status, result.process, folder / RESULT):
        raise ValueError(
            f"{folder} holds a run noted as running on {result.process.host}, process "
            f"{result.process.pid}, which cannot be seen to have ended; wait for it, give "
            f"resume={folder} to go on with it if it is dead, or another folder"
        )


def find_unfinished(folder: Path, digest: str) -> Path | None:
    """The newest run folder under `folder` with this config hash that did not finish.

    A run that is still alive, or runs on another machine, is left alone.
    """
    candidates = []
    for path in folder.rglob(RESULT):
        result = read_result(path.parent)
        if result is None:
            continue
        same = result.config_hash == digest and result.status in UNFINISHED
        if not same:
            continue
        if not alive(result.status, result.process, path):
            candidates.append(path)
        elif result.process.host != this_process().host:
            log.warning(
                "%s is noted as running on %s, which cannot be seen from here: if it has ended, "
                "go on with it by resume=%s",
                *(path.parent, result.process.host, path.parent),
            )
    return max(candidates, key=lambda p: p.stat().st_mtime).parent if candidates else None


def _has_work(folder: Path) -> bool:
    # a dot leads the name of a file that was being written when its process died
    parts = folder / PARTS
    finished = parts.is_dir() and any(not p.name.startswith(".") for p in parts.iterdir())
    kept = any((folder / STAGES).glob("*/*/content.json"))
    begun = any((folder / STAGES / BEGUN).glob("[!.]*"))
    blocks = any((folder / BLOCKS).glob("*/[!.]*"))
    return finished or kept or begun or blocks or last_checkpoint(folder) is not None


def _search_root(fresh: Path, name: str) -> Path:
    """multirun/<name> where the run lies in it, else the run folder itself."""
    parts = tuple(name.split("/"))
    return next((p for p in fresh.parents if p.parts[-len(parts) :] == parts), fresh)
