"""The rank of PERP's head, and the settings of PERP that have no effect (no torch)."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.config.asked import Asked
from sparsemend.method.adapter.shapes import check_rank

LINEARS = {"mask_lora", "scale_lora"}  # what gives every pruned linear the rank
HEADS = ("lm_head.weight", "embed_out.weight")
TIED = ("embed_tokens.weight", "wte.weight")  # the head where a file names none


def check(asked: Asked) -> None:
    """Raise ValueError where a head that trains has fewer directions than the rank."""
    if "lm_head" not in asked.section.trained:
        return
    tensors = asked.model.tensors or {}
    for called in (HEADS, TIED):
        heads = {n: tensors[n].shape for n in tensors if n.endswith(called)}
        if heads:
            check_rank("method.rank", asked.section.rank, heads)
            return


def without_effect(section: DictConfig) -> set[str]:
    """The rank where no linear has it, the scale where no LoRA does."""
    unread = set() if LINEARS & set(section.trained) else {"rank"}
    return unread if {"lm_head", "mask_lora"} & set(section.trained) else unread | {"alpha"}
