"""The repaired model of a finished run, with its supports and, where there is one, its adapter."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend.method.base import RepairMethod
from sparsemend.model import DTYPES
from sparsemend.result.finished import FinishedRun
from sparsemend.run.adopt import attach_supports
from sparsemend.sparse.mask_file import load_masks


def load_repaired(
    finished: FinishedRun, method: RepairMethod, attention: str | None
) -> PreTrainedModel:
    """Load the repaired model on the CPU, in its export dtype, with the very bits measured then.

    Where export_dtype rounded the weights, these are the rounded ones.  Raises ValueError where
    weights and masks do not belong together.
    """
    model = AutoModelForCausalLM.from_pretrained(
        finished.model, dtype=DTYPES[finished.dtype], attn_implementation=attention
    )
    model.config.use_cache = False
    attach_supports(model, load_masks(finished.model / "masks.safetensors"))
    if finished.adapter is not None:
        method.load_adapter(model, finished.adapter)
    return model.eval()
