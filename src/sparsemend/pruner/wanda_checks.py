"""What Wanda's variant cannot be combined with (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.config.flags import says
from sparsemend.config.members import member_name


def check(asked: Asked) -> None:
    """Raise ValueError where the variant is asked for rates, a pattern or a count it ignores."""
    cfg, schedule = asked.cfg, asked.cfg.sparsity_schedule
    if not asked.section.variant:
        return
    if not says(schedule, "uniform"):
        raise ValueError(
            "pruner.variant=true chooses one threshold for the uniform sparsity and ignores "
            f"{member_name(schedule._target_)}; use sparsity_schedule=uniform or "
            "pruner.variant=false"
        )
    if not asked.pattern.unstructured:
        raise ValueError(
            f"pruner.variant=true is defined without a pattern, not for {asked.pattern}; "
            "set pruner.variant=false"
        )
    if cfg.rounding == "exact_budget":
        raise ValueError(
            "rounding=exact_budget with pruner.variant=true, whose threshold gives no exact count; "
            "use rounding=pruner or pruner.variant=false"
        )
