"""Refuse a model of the caller whose linears could not be replaced and leave what it computes."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks

WRAPPER = "OptimizedModule"  # of torch.compile; what defines it takes seconds to import
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_caller_model(model: Any) -> None:
    """Raise ValueError unless `model` is a model of transformers as it was loaded.

    A wrapper would be pruned with what it wraps, a compiled forward would go on with the weights
    that it was compiled with, and hooks on a linear would be gone with it.
    """
    check_kind(model)
    for name, module in model.named_modules():
        if _is_compiled(module):
            raise ValueError(
                f"{name or 'the model'} is compiled; give the model as it was before, and compile "
                "it after its repair"
            )
    prefix, blocks = find_blocks(model)
    for name, module in blocks.named_modules():
        if _is_matrix(module) and any(getattr(module, kind, None) for kind in HOOKS):
            raise ValueError(
                f"{prefix}.{name} has hooks, which would be gone with it when it is replaced; "
                "remove them, and register them on what the model has afterwards"
            )


def check_kind(model: Any) -> None:
    """Raise ValueError unless `model` is a model of transformers itself, compiled or not."""
    kind = type(model).__name__
    if kind == WRAPPER:
        raise ValueError(f"this is a compiled model ({kind}); give model._orig_mod")
    if hasattr(model, "merge_and_unload"):
        raise ValueError(f"this is a {kind}; give what its merge_and_unload() returns")
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"this is a {kind} and no model of transformers; give what from_pretrained or "
            "sparsemend.api.load returns"
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # by add_adapter or load_adapter
        raise ValueError(
            f"this {kind} carries an adapter of PEFT; merge it into the weights with PEFT, or give "
            "the model without it"
        )


def _is_compiled(module: Any) -> bool:
    return (
        type(module).__name__ == WRAPPER or getattr(module, "_compiled_call_impl", None) is not None
    )


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 2 and next(module.children(), None) is None
