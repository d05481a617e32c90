"""Find the weight of a model that is NaN or infinite, to name it where no number means anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import streams, visit_blocks

HOLDS = (
    "holds NaN or infinity; give a model whose weights are finite, or a model.dtype that takes "
    "them (float16 ends at 65504)"
)


@torch.no_grad()
def first_not_finite(model: nn.Module) -> str | None:
    """The saved name of the first weight with a NaN or an infinity; None where all are finite.

    Blocks of a streamed model are read from their files, after what lies outside them.
    """
    for name, weight in _weights(model):
        if not weight.isfinite().all():
            module, _, tensor = name.rpartition(".")
            return f"{saved_name(model, module)}.{tensor}"
    return None


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if not weight.is_meta:
            yield name, weight
    if streams(model):
        for _, block_name, block in visit_blocks(model):
            for name, weight in block.named_parameters():
                yield f"{block_name}.{name}", weight
