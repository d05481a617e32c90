"""Erdos-Renyi rates from shapes alone, free of torch.

The density of a linear is proportional to (O + I) / (O I), so it keeps a number of weights
proportional to O + I:

    kept_l = epsilon (O_l + I_l),   epsilon = ((1 - S) sum n - sum_dense n) / sum_others (O + I)

A linear that would keep more than it has is dense, and epsilon is solved again for the others.
Mocanu et al. 2018, arXiv 1707.04780.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

MatrixShape = tuple[int, ...]


def rates(
    shapes: Mapping[str, MatrixShape], sparsity: float, dense: Collection[str] = ()
) -> dict[str, float]:
    """Sparsity per linear of shapes (O, I), 0 for those in `dense`.

    Raises ValueError where keeping those dense alone exceeds what may stay.
    """
    size = {name: outputs * inputs for name, (outputs, inputs) in shapes.items()}
    kept = (1 - sparsity) * sum(size.values())
    whole = set(dense)
    _check_room(sparsity, size, whole)
    while True:
        others = [name for name in shapes if name not in whole]
        room = kept - sum(size[name] for name in whole)
        width = sum(sum(shapes[name]) for name in others)
        epsilon = room / width if width else 0.0
        full = {name for name in others if epsilon * sum(shapes[name]) > size[name]}
        if not full:
            break
        whole |= full
    return {
        name: 0.0 if name in whole else 1 - epsilon * sum(shapes[name]) / size[name]
        for name in shapes
    }


def _check_room(sparsity: float, size: Mapping[str, int], dense: Collection[str]) -> None:
    held = sum(size[name] for name in dense) / sum(size.values())
    if sparsity > 1 - held:
        raise ValueError(
            f"sparsity {sparsity} exceeds {1 - held:.4f}, what is left where the last layer "
            f"({', '.join(sorted(dense)[:2])}{', ...' if len(dense) > 2 else ''}) stays dense; "
            "lower sparsity or use sparsity_schedule=er"
        )


def last_layer(names: Collection[str], block_of: Mapping[str, int], keep: str) -> list[str]:
    """The linears that ER-plus keeps dense: all of the last block, or only its last one.

    keep: last_linear | last_block.  names in module order, block_of gives their block's index.
    """
    last = max(block_of.values())
    inside = [name for name in names if block_of[name] == last]
    return inside if keep == "last_block" else inside[-1:]
