"""The finished blocks of a repair, for a later attempt of the same run.

Those of a model in memory are a file each.  Those of a streamed model are where its residency
keeps them, with the rows of the report beside them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparsemend.blocks.walk import Visit
from sparsemend.errors import blame_left
from sparsemend.files import replacing
from sparsemend.sparse.linear import sparse_linears

log = logging.getLogger(__name__)


@dataclass
class BlockRows:
    """The report's row of every block in order, kept beside each block that is finished."""

    blocks: list[dict[str, Any]] = field(default_factory=list)

    def to_carry(self) -> dict[str, Any]:
        return {"blocks": self.blocks}

    def carry_on_(self, values: Mapping[str, Any]) -> None:
        self.blocks = list(values["blocks"])


def save_block(path: Path, block: nn.Module, row: Mapping[str, Any]) -> None:
    """Write a finished block with its report row, whole or not at all."""
    tensors = {name: value.cpu().contiguous() for name, value in block.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"row": json.dumps(row)})


def load_block(path: Path, visit: Visit) -> dict[str, Any]:
    """Load a finished block's tensors into the visited block; return its report row.

    Raises ValueError where the two have different supports.
    """
    with blame_left(path), safe_open(path, framework="pt") as file:
        row: dict[str, Any] = json.loads(file.metadata()["row"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, linear in sparse_linears(visit.block):
        if not torch.equal(tensors[f"{name}.packed_keep"], linear.packed_keep.cpu()):
            raise ValueError(
                f"{path} holds another support of {name} than pruning gave this time (other "
                "threads or packages?); drop resume to start afresh"
            )
    visit.block.load_state_dict(tensors)
    log.info("block %d/%d  as an earlier attempt left it", visit.index + 1, visit.count)
    return row
