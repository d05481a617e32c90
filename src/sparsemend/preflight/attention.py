"""Refuse an attention whose package or device is not here, without asking torch."""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig

FLASH = "flash_attention_2"
PACKAGES = ("flash_attn", "kernels")  # transformers takes its kernels from either
REMEDY = "set model.attention=sdpa, or null for the model's own choice"


def check_attention(cfg: DictConfig) -> None:
    """Raise ValueError where FlashAttention has no package, no GPU, or a dtype that it lacks."""
    if cfg.model.get("attention") != FLASH:
        return
    if not any(find_spec(package) for package in PACKAGES):
        raise ValueError(
            f"model.attention={FLASH} needs the package {PACKAGES[0]}, which is not installed; "
            f"pip install flash-attn, or {REMEDY}"
        )
    if (accelerator := cfg.hardware.get("accelerator")) != "gpu":
        raise ValueError(
            f"model.attention={FLASH} runs on CUDA alone, and hardware.accelerator={accelerator}; "
            f"set hardware=gpu, or {REMEDY}"
        )
    if cfg.model.get("dtype") == "float32":
        raise ValueError(
            f"model.attention={FLASH} computes in bfloat16 or float16, not in model.dtype=float32; "
            f"set model.dtype=bfloat16, or {REMEDY}"
        )
