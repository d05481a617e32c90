"""The linears of a checkpoint by names, shapes and config: layouts, routers, and whose blocks."""

from __future__ import annotations

from typing import Any

import pytest

from sparsemend.checkpoint.linears import (
    Stored,
    block_tensors,
    linear_shapes,
    other_weights,
    stored_linears,
)

CONFIG = {"hidden_size": 8, "num_hidden_layers": 1}


def layouts(config: dict[str, Any], **tensors: tuple[int, ...]) -> dict[str, Stored]:
    """Stored linears of one block, by the rest of their names (`__` stands for a dot)."""
    blocks = {f"layers.0.{name.replace('__', '.')}": shape for name, shape in tensors.items()}
    found = stored_linears(blocks, config)
    return {name.removeprefix("layers.0."): stored for name, stored in found.items()}


def test_numbered_experts_are_linears_and_norms_convolutions_and_embeddings_are_not() -> None:
    assert layouts(
        CONFIG,
        mlp__experts__3__gate_proj__weight=(6, 8),
        mlp__experts__3__down_proj__weight=(8, 6),
        norm__weight=(8,),
        conv1d__weight=(8, 1, 4),
        relative_attention_bias__weight=(4, 8),
    ) == {
        "mlp.experts.3.gate_proj": Stored((6, 8)),
        "mlp.experts.3.down_proj": Stored((8, 6)),
    }


STACKS = {  # (gate and up in one, down), with 3 experts of 8 inputs and 6 or 8 inner units
    "outputs first": ((3, 12, 8), (3, 8, 6), True),
    "inputs first": ((3, 8, 12), (3, 6, 8), False),
    "outputs first, square": ((3, 16, 8), (3, 8, 8), True),
    "inputs first, square": ((3, 8, 16), (3, 8, 8), False),  # gpt-oss: 2880 and 2880
}


@pytest.mark.parametrize("config", [CONFIG, {}, {"text_config": CONFIG}])
@pytest.mark.parametrize("kind", STACKS)
def test_the_axis_of_inputs_of_a_stack_follows_from_the_sizes(
    kind: str, config: dict[str, Any]
) -> None:
    gate_up, down, last = STACKS[kind]
    assert layouts(config, mlp__experts__gate_up_proj=gate_up, mlp__experts__down_proj=down) == {
        "mlp.experts.gate_up_proj": Stored(gate_up, last),
        "mlp.experts.down_proj": Stored(down, last),
    }


@pytest.mark.parametrize("last", [True, False])
def test_without_a_gate_the_width_of_the_model_decides(last: bool) -> None:
    up, down = ((3, 6, 8), (3, 8, 6)) if last else ((3, 8, 6), (3, 6, 8))
    found = layouts(CONFIG, mixer__experts__up_proj=up, mixer__experts__down_proj=down)
    assert {stored.inputs_last for stored in found.values()} == {last}


def test_a_bias_and_last_the_model_type_decide_where_all_sizes_are_equal() -> None:
    square = {"mlp__experts__up_proj": (3, 8, 8), "mlp__experts__down_proj": (3, 8, 8)}
    oss = {**CONFIG, "model_type": "gpt_oss"}
    assert {stored.inputs_last for stored in layouts(CONFIG, **square).values()} == {True}
    assert {stored.inputs_last for stored in layouts(oss, **square).values()} == {False}
    fused = {"moe__experts__w13": (3, 8, 12), "moe__experts__w13_bias": (3, 12)}
    assert not layouts({}, **fused)["moe.experts.w13"].inputs_last


def test_conv1d_is_told_by_its_biases_or_by_its_type() -> None:
    biased = {"a__weight": (8, 24), "a__bias": (24,), "o__weight": (8, 8), "o__bias": (8,)}
    assert layouts({}, **biased) == {"a": Stored((8, 24), False), "o": Stored((8, 8), False)}
    bare = {"a__weight": (8, 24), "o__weight": (8, 8)}
    assert {s.inputs_last for s in layouts({"model_type": "gpt2"}, **bare).values()} == {False}
    assert {s.inputs_last for s in layouts({}, **bare).values()} == {True}
    tall = {"a__weight": (24, 8), "a__bias": (24,), "o__weight": (8, 8), "o__bias": (8,)}
    assert {s.inputs_last for s in layouts({"model_type": "gpt2"}, **tall).values()} == {True}


def test_the_linears_of_a_stack_are_told_apart() -> None:
    blocks = {"l.0.experts.gate_up_proj": (2, 8, 12), "l.0.experts.down_proj": (2, 6, 8)}
    assert linear_shapes(blocks, CONFIG) == {
        "l.0.experts.gate_up_proj[0, gate]": (6, 8),
        "l.0.experts.gate_up_proj[0, up]": (6, 8),
        "l.0.experts.gate_up_proj[1, gate]": (6, 8),
        "l.0.experts.gate_up_proj[1, up]": (6, 8),
        "l.0.experts.down_proj[0]": (8, 6),
        "l.0.experts.down_proj[1]": (8, 6),
    }


def test_the_config_says_how_a_tensor_holds_its_experts() -> None:
    blocks = {f"l.0.experts.mlp.{name}": (12, 8) for name in ("w1", "w2")}
    config = {**CONFIG, "ffn_config": {"moe_num_experts": 2}}
    shapes = linear_shapes(blocks, config)
    assert shapes["l.0.experts.mlp.w1[1]"] == (6, 8)
    assert shapes["l.0.experts.mlp.w2[0]"] == (8, 6)
    whole = {"l.0.mlp.input_linear.weight": (2, 12, 8)}
    assert len(linear_shapes(whole, {**CONFIG, "model_type": "granitemoe"})) == 4
    assert linear_shapes(whole, {**CONFIG, "model_type": "jetmoe"}) == {
        f"l.0.mlp.input_linear[{expert}]": (12, 8) for expert in range(2)
    }
    assert list(linear_shapes(blocks, CONFIG)) == ["l.0.experts.mlp.w1", "l.0.experts.mlp.w2"]


def test_the_blocks_are_those_of_the_text_and_not_of_a_larger_tower() -> None:
    shapes = {
        "model.vision_tower.encoder.layers.0.fc.weight": (64, 64),
        "model.language_model.layers.0.fc.weight": (8, 8),
        "model.language_model.layers.1.fc.weight": (8, 8),
    }
    assert {name.split(".")[1] for name in block_tensors(shapes)} == {"language_model"}


def test_the_blocks_are_as_many_as_the_config_says() -> None:
    shapes = {
        "deep.0.fc.weight": (4, 4),
        "deep.1.fc.weight": (4, 4),
        "wide.0.fc.weight": (64, 64),
    }
    assert set(block_tensors(shapes, {"text_config": {"num_hidden_layers": 2}})) == {
        "deep.0.fc.weight",
        "deep.1.fc.weight",
    }
    assert set(block_tensors(shapes)) == {"wide.0.fc.weight"}


def test_a_block_that_predicts_further_tokens_is_left_out() -> None:
    shapes = {f"layers.{block}.fc.weight": (4, 4) for block in range(3)}
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    assert set(block_tensors(shapes, config)) == {"layers.0.fc.weight", "layers.1.fc.weight"}


def test_what_multiplies_activations_without_being_a_linear_is_told() -> None:
    blocks = {
        "l.0.rel_attn.q": (8, 2, 4),  # XLNet
        "l.0.conv1d.weight": (8, 1, 4),
        "l.0.mlp.gate.weight": (4, 8),
        "l.0.fc.weight": (8, 8),
        "l.0.experts.gate_up_proj_bias": (4, 8),
        "l.0.norm.weight": (8,),
    }
    assert set(other_weights(blocks, stored_linears(blocks))) == {"l.0.rel_attn.q"}
