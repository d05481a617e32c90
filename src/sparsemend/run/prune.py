"""The pruning of one run: from given supports, from the cache, or by schedule and pruner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from operator import call
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.finite import HOLDS, first_not_finite
from sparsemend.blocks.names import saved_name, with_saved_names
from sparsemend.blocks.residency import residency_of, streams
from sparsemend.blocks.states import StatesPlace
from sparsemend.blocks.walk import Calibration
from sparsemend.config.locations import resolve_path
from sparsemend.config.values import digest
from sparsemend.errors import NotFinite
from sparsemend.layout.saved import module_supports
from sparsemend.names import HIDDEN_STATES
from sparsemend.prune import dense_statistics, observe_first, prune, prune_observed
from sparsemend.pruner.base import Pruner
from sparsemend.rounding import apply_rounding, as_pruned
from sparsemend.run.adopt import adopt, attach_whole
from sparsemend.run.cache import Content
from sparsemend.run.job import Loaded, RunJob
from sparsemend.run.memory import Memory
from sparsemend.run.pruned import pruned_content, restore_
from sparsemend.run.table import show_rates
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.stays_dense import LISTED, REACHED, stays_dense, warn_dense
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.measured import MeasuringSchedule

NOTHING_KEPT = Memory(False)
Measuring = Callable[[Callable[[], list[Any]]], list[Any]]


@contextmanager
def naming_not_finite(model: PreTrainedModel) -> Iterator[None]:
    """Name the weight that is not finite, else the linear, where a NotFinite ends what is inside.

    A streamed model's blocks are with the walk that was ended, so the linear is named.
    """
    try:
        yield
    except NotFinite as error:
        weight = None if streams(model) else first_not_finite(model)
        if weight is not None:
            raise ValueError(f"{weight} {HOLDS}") from error
        if error.linear is not None:
            raise ValueError(f"{saved_name(model, error.linear)}: {error}") from error
        raise


@dataclass(frozen=True, kw_only=True)
class PruningRules:
    """The rules of one pruning: all that decides it besides model and calibration.

    rounding, statistics and true_sequential: as in run.yaml.
    """

    pruner: Pruner
    schedule: SparsitySchedule
    sparsity: float
    pattern: Pattern
    rounding: str
    statistics: str
    true_sequential: bool

    def __call__(
        self,
        model: PreTrainedModel,
        calibration: Calibration,
        memory: Memory = NOTHING_KEPT,
        observing: Callable[[], Mapping[str, Any]] = dict,
        allocating: Callable[[Callable[[], Allocation]], Allocation] = call,
        measuring: Measuring = call,
        beginning: Callable[[], None] | None = None,
    ) -> Allocation:
        """Prune `model` in place; return the sparsity asked of every linear.

        memory: may hold what does not depend on the rates; observing: the parts of its keys.
        allocating: gives what the schedule decides, measuring: what it measures, whatever the
        rates; each is handed that to be called.  beginning: called when all is read of the dense
        model that is to be read of it as a whole.
        """
        with naming_not_finite(model):
            allocation = allocating(partial(self._allocate, model, calibration, measuring))
            pruner, allocation = apply_rounding(self.rounding, self.pruner, allocation)

            def remember(kind: str, observe: Any) -> Any:
                if not memory.enabled:
                    return observe(model, calibration, self.pruner)
                return memory.once(
                    kind, observing(), lambda: observe(model, calibration, self.pruner)
                )

            if self.statistics == "dense" and self.pruner.needs_calibration:
                statistics = remember("statistics", dense_statistics)
                if beginning is not None:
                    beginning()
                prune_observed(model, calibration, statistics, pruner, allocation, self.pattern)
                return as_pruned(pruner, allocation)
            first = None
            # true_sequential observes the first block by parts
            if memory.enabled and not self.true_sequential:
                first = remember("first block", observe_first)
            if beginning is not None:
                beginning()
            prune(
                model,
                calibration,
                pruner,
                allocation,
                self.pattern,
                first=first,
                true_sequential=self.true_sequential,
            )
            return as_pruned(pruner, allocation)

    def _allocate(
        self, model: PreTrainedModel, calibration: Calibration, measuring: Measuring
    ) -> Allocation:
        asked = (model, calibration, self.sparsity, self.pattern)
        if isinstance(self.schedule, MeasuringSchedule):
            return self.schedule.allocate_measured(measuring, *asked)
        return self.schedule.allocate(*asked)


def _prune_streamed(job: RunJob, loaded: Loaded) -> Allocation:
    """Prune a model block by block, after the blocks that an earlier attempt has pruned."""
    pruner, schedule = job.parts.pruner, job.parts.sparsity_schedule
    model, calibration, parts = loaded.model, calibration_of(job, loaded), None
    if job.reuse.caches:
        parts = job.keys.pruning(calibration, pruner, schedule)
        job.keys.pruned = digest(parts)

    def allocate(decide: Callable[[], Allocation]) -> Allocation:
        return decide() if parts is None else _remember(job, parts, decide)

    def begin() -> None:
        """From here on the pruned blocks of an earlier attempt are the model's."""
        residency_of(model).begin("prune", job.keys.pruned or None)

    measuring = measuring_of(job, calibration)
    return pruning_of(job)(
        model, calibration, allocating=allocate, measuring=measuring, beginning=begin
    )


def measuring_of(job: RunJob, calibration: Calibration) -> Measuring:
    """Gives what the schedule measures: of this process, of another job, or computed here."""
    schedule, reuse = job.parts.sparsity_schedule, job.reuse
    if not isinstance(schedule, MeasuringSchedule) or not reuse.on:
        return call
    parts = job.keys.scoring(calibration, schedule)

    def measuring(measure: Callable[[], list[Any]]) -> list[Any]:
        def once() -> list[Any]:
            content = reuse.once(
                "scores", parts, lambda: Content({"scores": measure()}), origin=["scores"]
            )
            measured: list[Any] = content.values["scores"]
            return measured

        measured: list[Any] = reuse.memory.once("scores", parts, once)
        return measured

    return measuring


def _remember(
    job: RunJob, parts: Mapping[str, Any], decide: Callable[[], Allocation]
) -> Allocation:
    def compute() -> Content:
        return Content(asdict(decide()))

    return Allocation(**job.reuse.again("allocation", parts, compute).values)


def prune_stage(job: RunJob, loaded: Loaded) -> Mapping[str, float]:
    """Prune the loaded model in place; return the sparsity asked of every linear."""
    with job.stages.measure("prune"):
        allocation = _prune(job, loaded)
    show_rates(job.result.content, loaded.model, allocation, job.cfg.sparsity)
    _record_dense(job, loaded.model, LISTED if job.parts.pruner.reads_support else REACHED)
    return allocation


def _record_dense(job: RunJob, model: PreTrainedModel, otherwise: str) -> None:
    """Record and say which linears have no support; `otherwise` as in `stays_dense`."""
    dense = stays_dense(model, otherwise)
    warn_dense(model, dense)
    job.result.content["sparsity"]["stays_dense"] = with_saved_names(model, dense)


def leave_whole(job: RunJob, loaded: Loaded) -> Mapping[str, float]:
    """Begin with the dense model, for a method that prunes by itself; returns rates of 0."""
    rates = attach_whole(loaded.model)
    _record_dense(job, loaded.model, REACHED)
    return rates


def given_supports(job: RunJob, model: PreTrainedModel) -> Mapping[str, Tensor] | None:
    """Supports, bool (O, I) by linear, in the masks file of a pruned checkpoint, or None."""
    if not job.parts.pruner.reads_support:
        return None
    saved = job.parts.pruner.supports(resolve_path(job.cfg.model.path))
    return None if saved is None else module_supports(model, saved)


def calibration_of(job: RunJob, loaded: Loaded) -> Calibration:
    """The calibration windows, seen where the hardware says."""
    hardware = job.parts.hardware
    return Calibration(
        (loaded.windows.calibration,),
        device=job.device,
        offload=hardware.offload,
        states=StatesPlace(hardware.states, job.out / HIDDEN_STATES),
    )


def _prune(job: RunJob, loaded: Loaded) -> Mapping[str, float]:
    pruner, schedule = job.parts.pruner, job.parts.sparsity_schedule
    model, calibration, keys = loaded.model, calibration_of(job, loaded), job.keys
    if pruner.reads_support:
        residency_of(model).begin("prune")
        return adopt(model, given_supports(job, model))
    if streams(model):
        return _prune_streamed(job, loaded)
    prune_here = partial(
        pruning_of(job),
        model,
        calibration,
        job.reuse.memory,
        partial(keys.observing, calibration, pruner, schedule),
        measuring=measuring_of(job, calibration),
    )
    if not pruner.prunes or not job.reuse.caches:
        return prune_here()
    parts = keys.pruning(calibration, pruner, schedule)
    keys.pruned = digest(parts)
    if not job.reuse.models:
        return prune_here()
    computed = []

    def compute() -> Any:
        computed.append(prune_here())
        return pruned_content(model, computed[0])

    content = job.reuse.once("pruned", parts, compute, origin=["pruned"])
    if computed:
        return computed[0]
    restore_(model, content.tensors)
    return Allocation(**content.values)


def pruning_of(job: RunJob) -> PruningRules:
    """The pruning that this job's config describes."""
    cfg, parts = job.cfg, job.parts
    return PruningRules(
        pruner=parts.pruner,
        schedule=parts.sparsity_schedule,
        sparsity=cfg.sparsity,
        pattern=job.pattern,
        rounding=cfg.rounding,
        statistics=cfg.statistics,
        true_sequential=cfg.true_sequential,
    )
