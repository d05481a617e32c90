"""What ER-plus leaves to prune beside the layer that it keeps dense (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.asked import Asked, check_choices
from sparsemend.sparsity_schedule.rates.erdos_renyi import rates
from sparsemend.sparsity_schedule.rates.options import KEY, check_unstructured
from sparsemend.sparsity_schedule.rates.rates_file import WITHIN

CHOICES = {"dense": ("last_linear", "last_block")}


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError naming the first option that is not one of its choices."""
    check_choices(KEY, options, CHOICES)


def check(asked: Asked) -> None:
    """Raise ValueError with a pattern, and where the dense linears leave too little to prune.

    Files do not say which linear of a block comes last; none of them leaves more than the
    smallest does.
    """
    check_options(asked.section)
    check_unstructured(asked)
    linears = asked.linears
    if not linears:
        return
    blocks = {name: _block(name) for name in linears}
    inside = [name for name in linears if blocks[name] == max(blocks.values())]
    smallest = min(inside, key=lambda name: linears[name][0] * linears[name][1])
    dense = inside if asked.section.dense == "last_block" else [smallest]
    rates(linears, asked.cfg.sparsity, dense)


def _block(name: str) -> int:
    match = WITHIN.fullmatch(name)
    return int(match[1].split(".")[0]) if match else 0
