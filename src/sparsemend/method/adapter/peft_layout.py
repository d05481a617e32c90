"""Low-rank factors as the two files that PEFT reads, written without PEFT.

PEFT gives factors to modules, and an expert of a fused tensor is none in the saved model: it would
load the other factors and leave those of the experts out without an error.  Where experts have
factors the config, without which PEFT refuses the folder, is not written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.names import saved_name
from sparsemend.files import replacing, write_json
from sparsemend.layout.fused import Unfolded
from sparsemend.method.adapter.low_rank import SCALE_RULES, scale_of

log = logging.getLogger(__name__)

FACTORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def save_peft(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    model: PreTrainedModel,
    folder: Path,
    *,
    base: str,
    alpha: float,
    dropout: float,
    rank_stabilised: bool,
) -> None:
    """Write `folder` so that PeftModel.from_pretrained(base_model, folder) restores the adapter.

    factors: linear name -> (A (R, I), B (O, R)).  `base` names the model the adapter belongs to.
    Where experts of a fused tensor have factors, a warning says that PEFT cannot restore them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in factors.items():
        tensors[f"{ROOT}{name}{A}"] = a.detach().cpu().contiguous()
        tensors[f"{ROOT}{name}{B}"] = b.detach().cpu().contiguous()
    with replacing(folder / FACTORS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    config_path = folder / CONFIG
    if inside := in_fused_tensors(factors, model):
        config_path.unlink(missing_ok=True)
        log.warning(
            "the adapter has no adapter_config.json: PEFT has no place for the factors of %d "
            "experts' linears, first %s, and would leave them out; from_run reads them, and "
            "method=masked_lora folds its factors into the weights",
            len(inside),
            saved_name(model, inside[0]),
        )
        return
    rank = next(iter(factors.values()))[0].shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rank_stabilised,
        "target_modules": target_modules(factors.keys(), model),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(config_path, config)


def in_fused_tensors(names: Iterable[str], model: nn.Module) -> list[str]:
    """Those of the linears that the saved model holds as parts of a tensor of experts."""
    fused = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, Unfolded))
    return [name for name in names if name.startswith(fused)]


def load_peft(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors that `save_peft` wrote: linear name -> (A (R, I), B (O, R))."""
    tensors = load_file(folder / FACTORS)
    names = [key.removesuffix(A).removeprefix(ROOT) for key in tensors if key.endswith(A)]
    return {name: (tensors[f"{ROOT}{name}{A}"], tensors[f"{ROOT}{name}{B}"]) for name in names}


def peft_scale(folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]]) -> float | None:
    """The scale that the folder's config states for its factors; None where there is no config.

    Raises ValueError where the config states another rank than the factors have.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, (a, _) in factors.items():
        if a.shape[0] != config["r"]:
            raise ValueError(
                f"{path} states r={config['r']}, but the factors of {name} have rank {a.shape[0]}; "
                "bring back the two files that were written together"
            )
    rule = SCALE_RULES[1] if config.get("use_rslora") else SCALE_RULES[0]
    return scale_of(config["lora_alpha"], config["r"], rule)


def target_modules(names: Iterable[str], model: nn.Module) -> list[str]:
    """The last parts of `names` (q_proj, ...), or whole names where those match other modules."""
    wanted = set(names)
    leaves = {name.rpartition(".")[2] for name in wanted}
    matched = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in leaves}
    return sorted(leaves) if matched == wanted else sorted(wanted)
