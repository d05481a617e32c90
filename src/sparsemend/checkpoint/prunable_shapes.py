"""The shapes of the linears that a run may prune, from safetensors headers and `prunable` alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import block_number, has_experts, linear_shapes
from sparsemend.config.prunable import PrunableNames, defaults, matches


def prunable_shapes(
    cfg: DictConfig, blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> dict[str, TensorShape]:
    """Name -> (O, I) of the linears inside the blocks that may lose weights.

    config: the content of config.json.  The routers of a mixture are left out whatever the choice
    is: most are no linears, and no file says which are.
    """
    shapes = linear_shapes(blocks, config)
    if has_experts(shapes):
        shapes = {name: s for name, s in shapes.items() if not matches(defaults(), name)}
    return PrunableNames.of(cfg).without_dense(shapes)


def weights_per_block(linears: Mapping[str, TensorShape]) -> list[int]:
    """Weights of every block, in their order; a block without any of these linears is left out."""
    weights: dict[int, int] = {}
    for name, shape in linears.items():
        block = block_number(name)
        weights[block] = weights.get(block, 0) + prod(shape)
    return [weights[block] for block in sorted(weights)]
