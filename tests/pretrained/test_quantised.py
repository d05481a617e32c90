"""Formats that are published in no other are turned back into numbers while they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.families import random_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sparsemend.pretrained.checkpoint import Checkpoint

BLOCK = 16  # weights of a side that share an fp8 scale
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # e2m1


def quantised(folder: Path, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> Path:
    """The saved model of a folder, with other tensors and a quantization_config."""
    save_file(dict(tensors), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def check_turned_back(folder: Path, expected: Mapping[str, Tensor], out: Path) -> None:
    """The export has the expected numbers, and a config of a model that is not quantised."""
    checkpoint = Checkpoint(path=str(folder), revision=None, trust_remote_code=False)
    checkpoint.load(dtype=torch.float32, attention=None).save_pretrained(out)
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(fp8 weight, scale of every block, the numbers that the two stand for)."""
    rows, columns = weight.shape[0] // BLOCK, weight.shape[1] // BLOCK
    blocks = weight.view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448  # the largest fp8
    packed = (blocks / scale).to(torch.float8_e4m3fn)
    numbers = (packed.float() * scale).view_as(weight)
    return packed.view_as(weight), scale.view(rows, columns), numbers


def test_fp8_with_a_scale_per_block_is_turned_back(tmp_path: Path) -> None:
    model = tmp_path / "model"
    random_model("llama").save_pretrained(model)
    expected = load_file(model / "model.safetensors")
    packed = dict(expected)
    for name in [name for name in expected if name.endswith("proj.weight")]:
        packed[name], packed[f"{name}_scale_inv"], expected[name] = to_fp8(expected[name])
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    check_turned_back(quantised(model, packed, settings), expected, tmp_path / "out")


def test_mxfp4_experts_are_turned_back(tmp_path: Path) -> None:
    model = tmp_path / "model"
    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    expected = load_file(model / "model.safetensors")
    packed = dict(expected)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in expected if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = packed.pop(name).shape
        groups = (experts, outputs, inputs // 32)  # of 32 numbers, two in a byte, with one exponent
        pairs = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=generator)
        exponents = torch.randint(120, 130, groups, dtype=torch.uint8, generator=generator)
        packed |= {f"{name}_blocks": pairs, f"{name}_scales": exponents}
        numbers = torch.stack([FP4[(pairs & 15).long()], FP4[(pairs >> 4).long()]], -1)
        numbers = numbers.flatten(-2) * torch.exp2(exponents.float() - 127)[..., None]
        expected[name] = numbers.flatten(-2).transpose(1, 2).contiguous()
    check_turned_back(
        quantised(model, packed, {"quant_method": "mxfp4"}), expected, tmp_path / "out"
    )
