"""Refuse an arena whose rows could not share a table, before its first job and without torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.flags import says
from sparsemend.config.values import differences, plain
from sparsemend.method.held_out import training_batches
from sparsemend.result.folder import read_result
from sparsemend.sweep.arena.settings import BUDGETS, low_rank_rows, settings_of

log = logging.getLogger(__name__)


def check_arena(configs: Sequence[DictConfig]) -> None:
    """Raise ValueError where the jobs of an arena do not share one legal budget and settings.

    The rows of a claim need not share a table: its statements name what is compared.
    """
    rows = [cfg for cfg in configs if cfg.get("arena") is not None]
    for cfg in rows:
        if cfg.budget not in BUDGETS:
            raise ValueError(f"budget={cfg.budget} is not one of: {', '.join(BUDGETS)}")
    shared = settings_of(plain(rows[0])) if rows else {}
    for cfg in rows[1:] if rows and rows[0].get("claim") is None else ():
        if mismatches := differences(shared, settings_of(plain(cfg))):
            raise ValueError(
                f"the rows of an arena share their settings, these differ in {mismatches[0]}; give "
                "one value, and an arena for each"
            )
    if rows and rows[0].budget == "seconds":
        _check_seconds(rows)
    trainable = bool(rows) and rows[0].budget == "trainable" and rows[0].get("claim") is None
    if trainable and not any(says(cfg.method, "low_rank") for cfg in rows):
        raise ValueError(
            "budget=trainable gives every row the parameters of the low-rank ones; add one of "
            f"{', '.join(low_rank_rows())} to arena="
        )
    for cfg in {cfg.arena.row: cfg for cfg in rows}.values():
        _point_out_epochs(cfg)


def _check_seconds(rows: Sequence[DictConfig]) -> None:
    seconds = rows[0].arena.seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"arena.seconds={seconds} is not above 0; give for example 30")
    for cfg in rows:
        pilots = list(cfg.arena.pilots)
        legal = all(isinstance(length, int) and length > 0 for length in pilots)
        if cfg.arena.length is not None and (not legal or len(set(pilots)) < 2):
            raise ValueError(
                f"arena.pilots={pilots} of row {cfg.arena.row} are not two lengths above 0, which "
                "a line needs; give for example [30,90]"
            )


def _point_out_epochs(cfg: DictConfig) -> None:
    """Warn where a row that trains block by block reads far less or more than the others."""
    method, arena = cfg.method, cfg.arena
    if cfg.budget != "tokens" or not says(method, "trains_blocks"):
        return
    counts = [method.get("windows_per_step"), method.get("epochs")]
    counts += [arena.steps, arena.windows_per_step, cfg.data.get("calibration_samples")]
    if any(not isinstance(count, int) or count < 1 for count in counts):
        return  # refused with every other value, or a user's own
    batches = training_batches(
        -(-cfg.data.calibration_samples // method.windows_per_step), method.get("held_out", 0.0)
    )
    windows = batches * method.windows_per_step
    budget_windows = arena.steps * arena.windows_per_step
    share = method.epochs * windows / budget_windows
    if not 0.5 <= share <= 1.05:
        log.warning(
            "row %s reads %.2f of the budget's tokens; set arena.epochs=%d",
            arena.row,
            share,
            max(1, budget_windows // windows),
        )


def as_measured(folder: Path, cfg: DictConfig) -> DictConfig:
    """The job's config, under budget=seconds with the length that pilots gave its cell in `folder`.

    Any other job's config is returned as it is.
    """
    result = read_result(folder)
    if result is None or cfg.get("budget") != "seconds" or cfg.arena.length is None:
        return cfg
    stored = OmegaConf.select(OmegaConf.create(result.config), cfg.arena.length)
    measured = copy.deepcopy(cfg)
    OmegaConf.update(measured, cfg.arena.length, stored, merge=False)
    return measured
