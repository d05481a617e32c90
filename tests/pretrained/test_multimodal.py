"""Multimodal folders are loaded whole, read text alone, and are saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import COMMON
from transformers import AutoConfig, AutoModelForImageTextToText

from sparsemend.pretrained.checkpoint import Checkpoint

TEXT = {**COMMON, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 14,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": 95,
    },
    # AutoModelForCausalLM takes the language part of a qwen3_5 alone
    "qwen3_5": {
        "text_config": QWEN_TEXT | {"layer_types": ["full_attention"]},
        "vision_config": QWEN_VISION,
    },
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multimodal_folder_is_loaded_and_saved_whole(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    loaded = Checkpoint(path=path, revision=None, trust_remote_code=False).load(
        dtype=torch.float32, attention=None
    )
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        logits = loaded(input_ids=tokens, use_cache=False).logits
        assert torch.equal(logits, model(input_ids=tokens, use_cache=False).logits)
    loaded.save_pretrained(tmp_path / "out")
    saved, exported = (load_file(tmp_path / f / "model.safetensors") for f in ("model", "out"))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
