"""Do once what several jobs, or several attempts of one job, have in common.

Jobs of one process share through memory, all jobs through the keyed cache of `conf/cache`; an
attempt hands its finished stages, and what it has of a measurement under way, to the next one
through `stages/` in the run folder, which is removed when the run ends.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sparsemend.config.values import digest
from sparsemend.evaluation.base import KeepNothing, Unfinished
from sparsemend.names import STAGES
from sparsemend.run.cache import Cache, Content
from sparsemend.run.memory import Memory
from sparsemend.run.unfinished import UnfinishedRows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """One job's view of the work that is there already.

    shared: the cache of all jobs, None where this job shares nothing.  attempts: that of this
    run's own attempts, None with cache=off.  models: whether pruned models are kept too.
    origins: where reused work came from, for result.json.
    """

    memory: Memory
    shared: Cache | None
    attempts: Cache | None
    models: bool
    origins: dict[str, Any] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        """Whether anything may be reused, so that keys are worth computing."""
        return self.memory.enabled or self.caches

    @property
    def caches(self) -> bool:
        """Whether finished stages are kept on disk."""
        return self.shared is not None or self.attempts is not None

    def once(
        self,
        kind: str,
        parts: Mapping[str, Any],
        compute: Callable[[], Content],
        *,
        origin: Sequence[str],
    ) -> Content:
        """compute(), or what another job or an earlier attempt computed from the same parts.

        origin: where in `origins` to say whose it is.
        """
        if self.shared is None:
            return self.again(kind, parts, compute)
        entry = self.shared.once(kind, parts, compute)
        *groups, name = origin
        place = self.origins
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = entry.origin()
        if entry.hit:
            log.info("%s of %s, %.1f s saved", kind, entry.made_by, entry.seconds)
        return entry.content

    def again(self, kind: str, parts: Mapping[str, Any], compute: Callable[[], Content]) -> Content:
        """compute(), or what an earlier attempt of this run computed from the same parts."""
        if self.attempts is None:
            return compute()
        entry = self.attempts.once(kind, parts, compute)
        if entry.hit:
            log.info("%s of the earlier attempt, %.1f s saved", kind, entry.seconds)
        return entry.content

    def keeper_of(self, parts: Mapping[str, Any]) -> Unfinished:
        """Where a measurement of these parts keeps what it has while it runs, if anywhere."""
        if self.attempts is None:
            return KeepNothing()
        return UnfinishedRows(self.attempts.folder, digest(parts))

    def forget_attempts(self) -> None:
        """Remove what this run kept for a later attempt."""
        if self.attempts is not None:
            shutil.rmtree(self.attempts.folder, ignore_errors=True)


def open_reuse(cfg: DictConfig, out: Path) -> Reuse:
    """What the job in the run folder `out` may reuse, by its config and how it was launched."""
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    kept = cfg.cache.dir is not None
    shared = kept and (sweep or cfg.cache.when == "always")
    # a cluster's job has a process of its own, in which no other job follows
    memory = bool(cfg.cache.memory) and "submitit" not in hydra.launcher["_target_"]
    origins: dict[str, Any] = {}
    return Reuse(
        memory=Memory(memory, origins.setdefault("memory", {}) if memory else {}),
        shared=Cache(Path(cfg.cache.dir), owner=out) if shared else None,
        attempts=Cache(out / STAGES, owner=out) if kept and cfg.from_run is None else None,
        models=bool(cfg.cache.models),
        origins=origins,
    )
