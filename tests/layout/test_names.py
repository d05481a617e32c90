"""The names of linears in the checkpoint: those of the files, whatever the modules are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import compose
from support.families import random_model
from support.layouts import layout_model
from support.tiny_models import save_tiny
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter

from sparsemend.blocks.choice import choose_
from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.names import saved_name, with_module_names, with_saved_names
from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.model import find_model
from sparsemend.checkpoint.prunable_shapes import prunable_shapes
from sparsemend.config.prunable import PrunableNames
from sparsemend.layout.names import name_linears_, saved_names
from sparsemend.layout.unfold import unfold_
from sparsemend.preflight.linear_names import check_linear_names
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.sparse.count import sparsity_report, sparsity_section

BLOCK = "model.layers.0"


def named(model: PreTrainedModel) -> PreTrainedModel:
    unfold_(model)
    name_linears_(model)
    return model


@pytest.mark.parametrize(
    ("family", "linear", "saved"),
    [
        ("mixtral", "mlp.experts.2.gate_proj", "block_sparse_moe.experts.2.w1"),
        ("mixtral", "mlp.experts.2.down_proj", "block_sparse_moe.experts.2.w2"),
        ("qwen3_moe", "mlp.experts.2.up_proj", "mlp.experts.2.up_proj"),
        ("gpt_oss", "mlp.experts.2.gate_proj", "mlp.experts.gate_up_proj[2, gate]"),
        ("gpt_oss", "mlp.experts.2.down_proj", "mlp.experts.down_proj[2]"),
        ("gpt_oss", "self_attn.q_proj", "self_attn.q_proj"),
    ],
)
def test_a_linear_is_called_as_in_the_checkpoint(family: str, linear: str, saved: str) -> None:
    assert saved_name(named(layout_model(family)), f"{BLOCK}.{linear}") == f"{BLOCK}.{saved}"


def test_a_plain_model_has_no_other_names() -> None:
    model = named(random_model("llama"))
    assert vars(model)["saved_names"] == {}
    assert all(name == saved for name, saved in saved_names(model).items())


def test_a_linear_in_two_tensors_has_both_names_and_two_in_one_are_told_apart() -> None:
    model = random_model("llama")
    halves = ["mlp.first.weight", "mlp.second.weight"]
    model._weight_conversions = [
        WeightConverter(halves, ["mlp.down_proj.weight"], operations=[Concatenate(dim=0)]),
        WeightConverter(
            ["mlp.both.weight"],
            ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            operations=[Chunk(dim=0)],
        ),
    ]
    names = saved_names(model)
    for block in range(3):
        mlp = f"model.layers.{block}.mlp"
        assert names[f"{mlp}.down_proj"] == f"{mlp}.first + {mlp}.second"
        assert names[f"{mlp}.gate_proj"] == f"{mlp}.both[gate]"
        assert names[f"{mlp}.up_proj"] == f"{mlp}.both[up]"


def test_what_is_written_has_saved_names_and_is_read_back() -> None:
    model = named(layout_model("nemotron_h"))  # model.layers is backbone.layers in its files
    rates = {name: 0.1 * number for number, name in enumerate(prunable_linears(model))}
    written = with_saved_names(model, rates)
    assert all(name.startswith("backbone.layers.") for name in written)
    assert with_module_names(model, written, rates) == rates
    assert with_module_names(model, rates, rates) == rates  # files of earlier versions
    section = sparsity_section(
        model, sparsity_report(model), rates, target=0.5, pattern="2:4", effective=0.5
    )
    assert section["per_linear"].keys() == written.keys()
    assert list(section["per_block"]) == ["backbone.layers.0", "backbone.layers.1"]


# patterns, and whether files say what they match: else the loaded model is asked
CHOICES: dict[str, dict[str, bool]] = {
    "mixtral": {"": True, "exclude=[gate_proj]": False},
    "qwen3_moe": {"": True, "include=[mlp.experts.1.*]": False},
    "gpt_oss": {
        "": True,
        "exclude=[up_proj,experts.down_proj]": True,
        "include=['experts.down_proj[1]']": True,
    },
    "llava": {"": True, "exclude=[language_model.model.layers.0.*]": False},
}


def in_files(folder: Path) -> tuple[Mapping[str, TensorShape], Mapping[str, Any]]:
    """The tensors inside the blocks and the config of a model's folder."""
    source = find_model(compose("run", ["model=local", f"model.path={folder}"]).model)
    assert source.blocks is not None
    assert source.config is not None
    return source.blocks, source.config.values


@pytest.mark.parametrize("family", CHOICES)
def test_what_files_say_of_a_choice_is_what_the_loaded_model_says(
    family: str, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path)
    blocks, config = in_files(tmp_path)
    model = Checkpoint(path=str(tmp_path), revision=None, trust_remote_code=False).load(
        dtype=torch.float32, attention=None
    )
    named(model)
    for choice, told in CHOICES[family].items():
        cfg = compose("run", [f"prunable.{choice}"] if choice else [])
        check_linear_names(cfg, blocks, config)
        early = prunable_shapes(cfg, blocks, config)
        choose_(model, PrunableNames.of(cfg))
        chosen = with_saved_names(model, prunable_linears(model))
        assert bool(early) == told
        if told:
            assert early == {name: tuple(m.weight.shape) for name, m in chosen.items()}


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral"])
def test_a_pattern_that_matches_neither_name_is_refused_before_the_model_is_loaded(
    family: str, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path)
    blocks, config = in_files(tmp_path)
    cfg = compose("run", ["prunable.exclude=[gate_porj]"])
    wanted = r"prunable\.exclude=gate_porj matches no linear .* nearest: gate_proj"
    with pytest.raises(ValueError, match=wanted):
        check_linear_names(cfg, blocks, config)
    with pytest.raises(ValueError, match=wanted):
        choose_(named(layout_model(family)), PrunableNames.of(cfg))
