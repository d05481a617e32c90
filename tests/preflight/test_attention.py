"""FlashAttention without its package, a GPU or a dtype is refused without torch."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.preflight import attention

FLASH = "model.attention=flash_attention_2"


def check(*lines: str) -> None:
    attention.check_attention(compose("run", ["model=local", "model.path=org/name", *lines]))


def test_flash_attention_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda package: None)
    check()
    check("model.attention=sdpa")
    with pytest.raises(ValueError, match=r"needs the package flash_attn, .*attention=sdpa, or nul"):
        check(FLASH, "hardware=gpu")


def test_flash_attention_needs_a_gpu_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda package: package)
    check(FLASH, "hardware=gpu")
    for member in ("cpu", "mps"):
        with pytest.raises(ValueError, match=rf"CUDA alone, and hardware\.accelerator={member}"):
            check(FLASH, f"hardware={member}")
    with pytest.raises(ValueError, match=r"not in model\.dtype=float32; set model\.dtype=bfloat"):
        check(FLASH, "hardware=gpu", "model.dtype=float32")
