"""`prunable` before torch: patterns against the names in headers, and what they leave to check."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.prunable_shapes import prunable_shapes
from sparsemend.preflight import check as preflight
from sparsemend.preflight.cache import pruned_bytes
from sparsemend.preflight.linear_names import check_linear_names

DECODER = {f"decoder.layers.{i}.{n}.weight": (8, 6) for i in (0, 1) for n in ("fc1", "fc2")}
EXPERTS = {"model.layers.0.mlp.experts.0.w1.weight": (8, 6)}


def check(
    overrides: list[str],
    blocks: dict[str, TensorShape] = DECODER,
    *,
    model_type: str = "opt",
) -> None:
    check_linear_names(compose("run", overrides), blocks, {"model_type": model_type})


def test_a_pattern_that_matches_nothing_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"prunable\.exclude=q_porj matches no .* nearest: q_proj"):
        preflight.check(compose("run", ["prunable.exclude=[q_porj]"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prunable.include=q_proj", "not a list of strings"),
        ("prunable.exclude=[1]", "not a list of strings"),
        ("prunable.exclude=null", "not a list of strings"),
        ("prunable=q_proj", "not a mapping"),
    ],
)
def test_a_list_of_patterns_is_a_list_of_strings(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preflight.check(compose("run", [override]))


def test_a_file_may_leave_out_the_first_parts_of_the_models_names() -> None:
    check(["prunable.exclude=[model.decoder.layers.0.fc1]"])
    with pytest.raises(ValueError, match="matches no linear"):
        check(["prunable.exclude=[model.decoder.layers.7.fc1]"])


def test_linears_that_are_named_when_they_are_loaded_are_not_asked_for_before() -> None:
    check(["prunable.exclude=[down_proj]"], EXPERTS)
    check(["prunable.exclude=[gate_proj]"], model_type="dory")  # g_proj in its files
    with pytest.raises(ValueError, match="matches no linear"):
        check(["prunable.exclude=[gate_proj]"])


@pytest.mark.parametrize("pattern", ["dwon_proj", "mlp.exprets.*.w1", "self_attn.q_porj"])
def test_a_word_that_no_name_of_the_class_has_is_refused_before_linears_are_named(
    pattern: str,
) -> None:
    with pytest.raises(ValueError, match=r"matches no linear .* neither in the names .* nearest: "):
        check([f"prunable.exclude=[{pattern}]"], EXPERTS, model_type="mixtral")


@pytest.mark.parametrize(
    "pattern", ["self_attn.q_proj", "mlp.experts.3.gate_proj", "layers.0.*", "w?"]
)
def test_a_pattern_of_words_of_the_class_is_left_to_the_loaded_model(pattern: str) -> None:
    check([f"prunable.exclude=[{pattern}]"], EXPERTS, model_type="mixtral")


def test_both_names_of_an_expert_are_asked_where_only_its_tensor_is_taken_apart() -> None:
    stack = {f"model.layers.0.mlp.experts.{n}": (4, 8, 6) for n in ("gate_up_proj", "down_proj")}
    for pattern in ("experts.gate_up_proj", "gate_proj", "experts.3.*", '"down_proj[2]"'):
        check([f"prunable.exclude=[{pattern}]"], stack, model_type="gpt_oss")
    with pytest.raises(ValueError, match=r"matches no .* in memory mlp\.experts\.\*\.gate_proj"):
        check(["prunable.exclude=[w1]"], stack, model_type="gpt_oss")


def test_linears_are_unknown_where_a_pattern_may_be_of_a_name_to_come() -> None:
    config = {"model_type": "mixtral"}
    assert list(prunable_shapes(compose("run", []), EXPERTS, config)) == [
        "model.layers.0.mlp.experts.0.w1"
    ]
    assert not prunable_shapes(compose("run", ["prunable.exclude=[gate_proj]"]), EXPERTS, config)


def test_what_stays_dense_is_held_to_no_pattern_and_takes_no_room_in_the_cache() -> None:
    every, some = (compose("run", lines) for lines in ([], ["prunable.exclude=[mlp.*]"]))
    assert pruned_bytes(some) < pruned_bytes(every)
    assert list(prunable_shapes(compose("run", ["prunable.include=[fc2]"]), DECODER)) == [
        "decoder.layers.0.fc2",
        "decoder.layers.1.fc2",
    ]
