"""Leaving sparsemend: plain dense safetensors that any Hugging Face code loads.

No sparse format and no `sparsity_config`: engines that dropped sparsity refuse both, and the zeros
are in the weights anyway.  The packed supports lie beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.masks import SparseLinear, sparse_linears
from sparsemend.metric_names import METRIC

CARD = """---
library_name: transformers
tags: [sparse, pruned, sparsemend]
---
# {title}

A pruned and repaired causal language model written by sparsemend.  Weights are stored dense;
the zeros are exact and `masks.safetensors` holds the supports (one bit per weight).

| | |
|---|---|
| base model | `{base}` |
| pruner | `{pruner}` |
| sparsity schedule | `{schedule}` |
| repair method | `{method}` |
| pattern | {pattern} |
| sparsity of prunable weights | {achieved:.6f} (asked {target}) |
| sparsity of all parameters | {of_all:.6f} |

| perplexity | {corpus}, {windows} windows of {seqlen} tokens, {dtype} |
|---|---|
{metrics}

Prunable weights are those of `nn.Linear` modules inside decoder blocks.

Reproduce:

```
{command}
```
"""


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


def model_card(result: Mapping[str, Any], command: str) -> str:
    """The README.md of an exported model, from the content of its result.json."""
    config, sparsity, protocol = result["config"], result["sparsity"], result["protocol"]
    metrics = "\n".join(
        f"| {state} | {_number(values.get(METRIC))} |"
        for state, values in result["metrics"].items()
    )
    return CARD.format(
        title=f"{config['model']['name']}, {sparsity['achieved']:.0%} sparse",
        base=config["model"].get("path", config["model"]["name"]),
        pruner=_member(config["pruner"]),
        schedule=_member(config["sparsity_schedule"]),
        method=_member(config["method"]),
        pattern=sparsity["pattern"],
        achieved=sparsity["achieved"],
        target=sparsity["target"],
        of_all=sparsity["achieved_of_all_parameters"],
        corpus=protocol["corpus"],
        windows=protocol["windows"],
        seqlen=protocol["seqlen"],
        dtype=protocol["dtype"],
        metrics=metrics,
        command=command,
    )


def _member(section: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in section.items() if k != "_target_")
    return f"{section['_target_'].rsplit('.', 1)[-1]}({settings})"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
