"""Tell a quantised checkpoint from its config.json and from the names and dtypes of its tensors.

A pruner needs the weights as numbers, which a quantised file does not hold.  Two formats are
turned back into numbers while they are loaded, by transformers itself, since their models are
published in no other: mxfp4 (gpt-oss) and fp8 with a scale per block (DeepSeek-V3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsemend.checkpoint.headers import TensorHeader

DEQUANTISED = ("mxfp4", "fp8")  # quant_method of formats that transformers turns back at load
# what packers leave beside or in place of a weight: name of the tensor -> name of the packer
PACKED = {
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)$|\.quant_state\b": "bitsandbytes",
    r"\.weight_(packed|shape|zero_point)$": "compressed-tensors",
    r"(\.weight_scale(_inv|_2)?|\.input_scale)$": "FP8 with scales",
    r"_blocks$": "mxfp4",
}
FLOATS = ("F64", "F32", "F16", "BF16")  # what the weight of a model is saved in


def quantisation_settings(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The quantization_config of a config.json, and of the configs inside it."""
    for key, value in values.items():
        if key == "quantization_config" and isinstance(value, Mapping):
            yield value
        elif key.endswith("_config") and isinstance(value, Mapping):
            yield from quantisation_settings(value)


def quantisation_method(settings: Mapping[str, Any]) -> str:
    """The name of a method, which early bitsandbytes configs leave out."""
    old = "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else None
    return str(settings.get("quant_method") or old or "an unnamed method")


def check_quantisation(path: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError where config.json names a method that nobody turns back into numbers."""
    for settings in quantisation_settings(values):
        method = quantisation_method(settings)
        if method not in DEQUANTISED:
            raise ValueError(_refusal(path, method, "as its quantization_config says"))


def check_packed(path: str, values: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Raise ValueError where tensors are packed, unless config.json names a format turned back."""
    if any(True for _ in quantisation_settings(values)):
        return
    for name, header in tensors.items():
        for pattern, method in PACKED.items():
            if re.search(pattern, name):
                raise ValueError(_refusal(path, method, f"as its tensor {name} shows"))
        if name.endswith(".weight") and header.dtype not in FLOATS:
            why = f"{name} is {header.dtype}, which is none of {', '.join(FLOATS)}"
            raise ValueError(_refusal(path, "a packed dtype", why))


def check_no_gguf(folder: Path) -> None:
    """Raise ValueError on a folder whose weights are a GGUF file and nothing else."""
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if files and not any(folder.glob("*.safetensors")):
        line = _refusal(str(folder), "GGUF", f"{files[0]} is its only weight file")
        raise ValueError(f"{line}, or model=gguf model.path={folder / files[0]}")


def _refusal(path: str, method: str, why: str) -> str:
    return (
        f"model {path} is quantised with {method} ({why}), so its weights cannot be pruned; give "
        "the checkpoint from before quantisation"
    )
