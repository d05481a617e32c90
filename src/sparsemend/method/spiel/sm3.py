"""SM3 over sparse deltas: one accumulator per row and one per column instead of two per delta.

    nu = min(u_row, w_column) + g^2     u_row <- max(u_row, nu in that row),  w_column likewise
    value <- value - lr g / sqrt(nu + 1e-8)

(Anil et al. 2019, arXiv 1901.11150.)  In SpIEL-MA deltas grow where u_row w_column is largest, so
no weight-sized gradient is ever formed (Ansell et al. 2024, arXiv 2401.16405).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsemend.method.adapter.delta.linear import DeltaLinear
from sparsemend.sparse.drop_and_grow import highest
from sparsemend.training.optimizers import SteppedOptimizer

EPSILON = 1e-8  # SpIEL's code
CHUNK = 2**24  # scores formed at once: 64 MiB in fp32


class Sm3(SteppedOptimizer):
    """state of a layer's values: rows (O, 1), columns (1, I) and, with momentum, average (k,)."""

    def __init__(
        self, layers: Sequence[DeltaLinear], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"method.momentum={momentum} is not in [0, 1)")
        self.layers = {id(layer.values): layer for layer in layers}
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([layer.values for layer in layers], defaults)

    def accumulators(self, layer: DeltaLinear) -> tuple[Tensor, Tensor]:
        """u (O, 1) and w (1, I), from 0."""
        state, shape = self.state[layer.values], layer.weight.shape
        if "rows" not in state:
            # never of the values' own shape, which would make them look like one per delta
            state["rows"] = layer.values.new_zeros(shape[0], 1)
            state["columns"] = layer.values.new_zeros(1, shape[1])
        return state["rows"], state["columns"]

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        layer, gradient = self.layers[id(parameter)], parameter.grad
        assert gradient is not None
        rows, columns = self.accumulators(layer)
        index = layer.indices.long()
        row, column = index // layer.in_features, index % layer.in_features
        flat_rows, flat_columns = rows.view(-1), columns.view(-1)
        bound = torch.minimum(flat_rows[row], flat_columns[column]) + gradient * gradient
        flat_rows.scatter_reduce_(0, row, bound, "amax")
        flat_columns.scatter_reduce_(0, column, bound, "amax")
        direction = gradient / (bound + EPSILON).sqrt()
        if group["momentum"]:
            state = self.state[layer.values]
            average = state.setdefault("average", torch.zeros_like(layer.values))
            direction = average.lerp_(direction, 1 - group["momentum"])
        layer.values.sub_(direction, alpha=group["lr"])
        if group["weight_decay"]:
            layer.values.mul_(1 - group["lr"] * group["weight_decay"])


def best_products(rows: Tensor, columns: Tensor, held: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(flat positions, score) of the `count` highest rows (O, 1) * columns (1, I) not in held (k,).

    Ties go to the lower position; a strip of rows at a time.
    """
    width = columns.shape[1]
    strip = max(1, CHUNK // width)
    held = held.long()
    positions, scores = held.new_empty(0), rows.new_empty(0)
    for start in range(0, rows.shape[0], strip):
        products = (rows[start : start + strip] * columns).view(-1)
        first = start * width
        inside = held[(held >= first) & (held < first + products.numel())] - first
        free = torch.ones_like(products, dtype=torch.bool)
        free[inside] = False
        places = free.nonzero().view(-1)
        scores = torch.cat([scores, products[places]])
        positions = torch.cat([positions, places + first])
        best = highest(scores, min(count, scores.numel()))
        positions, scores = positions[best], scores[best]
    return positions, scores
