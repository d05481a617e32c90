"""Say where results that stand side by side are not equally sparse.

The zeros of a run are counted exactly; its target is met to a weight by rounding=exact_budget
alone.  A method is then easily taken for better than another because it has lost less.
"""

from __future__ import annotations

from collections.abc import Iterable

APART = 1e-4  # of all prunable weights; ten times that moved the embedded model at 70 % by 10 %


def unequal_sparsities(
    results: Iterable[tuple[str, float | None, float | None]],
) -> list[str]:
    """A line per target of which results are more than APART apart.

    results: name, target and achieved sparsity of each; what was not counted is left out.
    """
    by_target: dict[float, list[tuple[float, str]]] = {}
    for name, target, achieved in results:
        if target is not None and achieved is not None:
            by_target.setdefault(target, []).append((achieved, name))
    lines = []
    for target, counted in by_target.items():
        (least, low), (most, high) = min(counted), max(counted)
        if most - least > APART:
            lines.append(
                f"not equally sparse: of target {target:g}, {low} achieves {least:.4f} and {high} "
                f"{most:.4f}, more than {APART:g} apart; rounding=exact_budget levels what pruners "
                "round"
            )
    return lines
