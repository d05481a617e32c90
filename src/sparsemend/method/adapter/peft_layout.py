"""Low-rank factors as the two files that PEFT reads, written without PEFT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.files import replacing, write_json

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
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in factors.items():
        tensors[f"{ROOT}{name}{A}"] = a.detach().cpu().contiguous()
        tensors[f"{ROOT}{name}{B}"] = b.detach().cpu().contiguous()
    with replacing(folder / "adapter_model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
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
    write_json(folder / "adapter_config.json", config)


def load_peft(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors that `save_peft` wrote: linear name -> (A (R, I), B (O, R))."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removesuffix(A).removeprefix(ROOT) for key in tensors if key.endswith(A)]
    return {name: (tensors[f"{ROOT}{name}{A}"], tensors[f"{ROOT}{name}{B}"]) for name in names}


def target_modules(names: Iterable[str], model: nn.Module) -> list[str]:
    """The last parts of `names` (q_proj, ...), or whole names where those match other modules."""
    wanted = set(names)
    leaves = {name.rpartition(".")[2] for name in wanted}
    matched = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in leaves}
    return sorted(leaves) if matched == wanted else sorted(wanted)
