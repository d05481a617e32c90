"""When sparse deltas can evolve, and how many a model holds, before it is loaded (no torch)."""

from __future__ import annotations

from math import prod

from sparsemend.config.asked import Asked
from sparsemend.method.adapter.delta.budget import DeltaBudget
from sparsemend.method.adapter.delta.schedule import RoundSchedule


def check_evolution(asked: Asked) -> None:
    """Raise ValueError where no round would come, deltas outnumber the kept weights, or the kernel
    is none of the device's.

    The count is left to the run where files do not say it: of a checkpoint that is pruned already,
    and by density of a model whose parameters are not counted.
    """
    method, model = asked.section, asked.model
    if method.kernel == "sparse" and asked.cfg.hardware.accelerator == "mps":
        raise ValueError(
            "method.kernel=sparse needs CSR matrices, which torch lacks on Apple's GPU; set "
            "method.kernel=gather"
        )
    RoundSchedule(
        interval=method.update_interval,
        window=method.accumulation_steps,
        steps=method.max_steps,
        initial=method.initial_drop_rate,
        first=method.first_drop_rate,
        decay=method.drop_schedule,
    )
    budget = DeltaBudget(**method.budget)
    uncounted = model.parameters is None and budget.match == "density"
    if not asked.linears or asked.pruned_already or uncounted:
        return
    weights = sum(map(prod, asked.linears.values()))
    kept = int((1 - asked.cfg.sparsity) * weights)
    total = budget.total(asked.linears, model.parameters or 0)
    if total > kept:
        raise ValueError(
            f"method.budget.match={budget.match} asks for {total:,} deltas, but sparsity "
            f"{asked.cfg.sparsity} keeps {kept:,} weights; lower method.budget.{budget.match} to "
            f"{kept / total:.3g} of its value or less"
        )
