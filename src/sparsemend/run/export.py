"""The export of a run: plain dense safetensors that any Hugging Face code loads.

No sparse format and no `sparsity_config`: engines that dropped sparsity refuse both, and the zeros
are in the weights anyway.  The packed supports lie beside them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.sparse.linear import SparseLinear, sparse_linears


def to_dense_(model: PreTrainedModel) -> PreTrainedModel:
    """Turn every SparseLinear back into nn.Linear, zeros in place, in place."""
    for name, sparse in list(sparse_linears(model)):
        model.set_submodule(name, _dense(sparse))
    return model


@torch.no_grad()
def _dense(sparse: SparseLinear) -> nn.Linear:
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    # an adapter that stays open is saved beside, not merged
    weight = sparse.effective_weight() if sparse.holds_support else sparse.weight
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = sparse.bias
    return linear


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    masks: Path,
    card: str,
) -> None:
    """Write `folder` whole or not at all: weights, config, tokenizer, supports, model card."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.config.use_cache = True  # off only while this package calibrates and trains
    model.save_pretrained(partial)
    model.config.use_cache = False
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    if masks.exists():
        shutil.copyfile(masks, partial / "masks.safetensors")
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


@torch.no_grad()
def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn every weight into another dtype; ValueError names one that is too large for it."""
    for name, parameter in model.named_parameters():
        rounded = parameter.to(dtype)
        if not rounded.isfinite().all() and parameter.isfinite().all():
            raise ValueError(
                f"export_dtype={str(dtype).removeprefix('torch.')} cannot hold {name}, whose "
                f"largest weight is {float(parameter.abs().max()):g}; export in another dtype"
            )
    nn.Module.to(model, dtype)
