"""Refuse a sweep or a search that cannot work, before its first job and without torch."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.values import override_key
from sparsemend.names import SWEEP
from sparsemend.preflight import check as preflight
from sparsemend.preflight.cache import check_cache
from sparsemend.sweep import cells as sweep
from sparsemend.sweep.arena.checks import as_measured, check_arena
from sparsemend.sweep.search.space import space_of


def check_sweep(configs: Sequence[DictConfig], lines: Sequence[str]) -> None:
    """Raise ValueError or OSError on a sweep that cannot work.

    Sets the folder that `resume=auto` continues in.  configs: those of the (first) jobs; lines: the
    command line's overrides.
    """
    first = configs[0]
    folder = choose_folder(first, lines)
    if first.get("search") is not None:
        check_search(first, lines)
        check_same_search(folder, lines)
    else:
        check_arena(configs)
        check_repositories(configs)
        check_jobs(configs)
        if folder is not None and first.get("claim") is None:  # a claim finds its cells itself
            cells = (as_measured(folder / str(n), cfg) for n, cfg in enumerate(configs))
            sweep.check_cells(folder, list(cells))
    check_cache(configs)


def choose_folder(cfg: DictConfig, lines: Sequence[str]) -> Path | None:
    """The existing sweep folder that this sweep continues in, None for a new one."""
    os.environ.pop("SPARSEMEND_SWEEP", None)
    folders = [line.split("=", 1)[1] for line in lines if override_key(line) == "hydra.sweep.dir"]
    if folders:
        folder = Path(folders[-1].strip("'\""))
        return folder if folder.is_dir() else None
    if cfg.resume is None:
        return None
    if cfg.resume != "auto":
        raise ValueError(
            f"resume={cfg.resume} names a single run; a sweep continues with resume=auto, or with "
            "hydra.sweep.dir=FOLDER"
        )
    unfinished_sweep = sweep.find_unfinished_sweep(Path("multirun"), lines)
    if unfinished_sweep is not None:
        os.environ["SPARSEMEND_SWEEP"] = unfinished_sweep.name  # conf/run.yaml, hydra.sweep.dir
    return unfinished_sweep


def check_jobs(configs: Sequence[DictConfig]) -> None:
    """Raise the first job's error unless at least one job can begin.

    A job that is refused later is a failed cell, which does not stop the sweep.
    """
    reasons = []
    for cfg in configs:
        try:
            preflight.check(cfg)
        except (ValueError, OSError) as error:
            reasons.append(error)
        else:
            return
    raise reasons[0]


def check_repositories(configs: Sequence[DictConfig]) -> None:
    """Raise ValueError where two jobs would upload to one repository, each over the one before."""
    asked = [str(cfg.export_push) for cfg in configs if cfg.get("export_push") is not None]
    for repository, count in Counter(asked).items():
        if count > 1:
            raise ValueError(
                f"export_push={repository} would be uploaded by {count} jobs, each over the one "
                "before; name a repository for each by a key that varies, such as "
                f"'export_push={repository}-${{sparsity}}', or upload the best one later: hf upload"
            )


def check_search(cfg: DictConfig, lines: Sequence[str]) -> None:
    """Raise ValueError or OSError where the search cannot work.

    Its space must be legal, a run must work at both ends of it, and nothing else may vary.
    """
    for override in OverridesParser.create().parse_overrides(list(lines)):
        if override.is_sweep_override():
            raise ValueError(
                f"{override.input_line} would sweep inside a search over {cfg.search.key}; search "
                "once per value"
            )
        if override.key_or_group == cfg.search.key:
            raise ValueError(f"{override.input_line} fixes what the search varies; leave it out")
    if cfg.search.select_on not in ("validation", "test"):
        raise ValueError(f"search.select_on={cfg.search.select_on} is not validation or test")
    _check_objective(cfg)
    _check_effect(cfg.search, lines)
    jobs = cfg.search.jobs
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"search.jobs={jobs} is not an integer of at least 1")
    if cfg.search.sampler == "golden" and jobs > 1:
        raise ValueError(
            f"search.jobs={jobs}, but each point of a golden section depends on the one before; "
            "set search.jobs=1, or search.sampler=listed"
        )
    group, _, inner = str(cfg.search.key).rpartition(".")
    section = OmegaConf.select(cfg, group) if group else cfg
    if not isinstance(section, DictConfig) or inner not in set(
        section.keys()
    ):  # also without a value
        raise ValueError(
            f"search.key={cfg.search.key} is no key of this configuration; choose a member that "
            "has it, or another key"
        )
    space = space_of(cfg)
    trials = [copy.deepcopy(cfg) for _ in space.values.ends]
    for trial, value in zip(trials, space.values.ends, strict=True):
        OmegaConf.update(trial, space.key, value, merge=False)
    if space.values.total > 1:
        check_repositories(trials)
    for trial in trials:
        preflight.check(trial)


def _check_objective(cfg: DictConfig) -> None:
    """Raise ValueError where no trial would measure what the search selects by."""
    perplexity, select_on = cfg.evaluation.get("perplexity"), cfg.search.select_on
    if perplexity is None or "_target_" not in perplexity:
        raise ValueError(
            f"search.select_on={select_on} selects by a perplexity, which evaluation does not "
            "measure; name it too, such as evaluation=[perplexity]"
        )
    if select_on == "validation" and not perplexity.validation:
        raise ValueError(
            "search.select_on=validation, but evaluation.perplexity.validation=false does not "
            "measure it; set it to true, or search.select_on=test"
        )


def _check_effect(search: DictConfig, lines: Sequence[str]) -> None:
    """Raise ValueError on a key of the command line that this search does not read."""
    listed = search.sampler == "listed"
    needs = {
        "points": ("search.sampler=listed", listed),
        "count": ("search.points=spread", listed and search.points == "spread"),
        "step": ("search.points=step", listed and search.points == "step"),
        "low": ("search.sampler=golden or tpe", not listed),
        "high": ("search.sampler=golden or tpe", not listed),
        "trials": ("search.sampler=golden or tpe", not listed),
        "log": ("search.sampler=tpe", search.sampler == "tpe"),
    }
    for line in lines:
        need, is_read = needs.get(override_key(line).removeprefix("search."), ("", True))
        if override_key(line).startswith("search.") and not is_read:
            raise ValueError(f"{line} has no effect without {need}; leave it out, or set that")


def check_same_search(folder: Path | None, lines: Sequence[str]) -> None:
    """Raise ValueError where `folder` holds another search: only the same one continues in it."""
    path = folder / SWEEP if folder is not None else None
    if path is None or not path.is_file():
        return
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["overrides"] != sweep.identity(lines):
        raise ValueError(
            f"{folder} holds another search ({' '.join(record['overrides'])}); give its own "
            "overrides, or another hydra.sweep.dir"
        )
