"""Which names the patterns of `prunable` match, and what is said of patterns that match nothing."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.config.prunable import PrunableNames, defaults, matches

BLOCK = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = [f"model.layers.{block}.{name}" for block in (0, 1, 10) for name in BLOCK]
SAME = {name: name for name in NAMES}
EXPERT = "model.layers.0.mlp.experts.1"
SAVED = {  # module name -> saved name, of a Mixtral and of a tensor of all experts
    f"{EXPERT}.gate_proj": "model.layers.0.block_sparse_moe.experts.1.w1",
    f"{EXPERT}.up_proj": "model.layers.0.mlp.experts.gate_up_proj[1, up]",
}


def prunable(*overrides: str) -> PrunableNames:
    return PrunableNames.of(compose("run", overrides))


@pytest.mark.parametrize(
    ("pattern", "blocks", "count"),
    [
        ("q_proj", "all", 3),
        ("self_attn.q_proj", "all", 3),
        ("self_attn.*", "all", 6),
        ("*.mlp.*", "all", 6),
        ("layers.1.*", "one", 4),  # not layers.10
        ("model.layers.1.mlp.down_proj", "one", 1),
        ("layers.[01].mlp.down_proj", "two", 2),
        ("?_proj", "all", 6),
        ("proj", "none", 0),  # no part of a name between dots
        ("_proj", "none", 0),
        ("attn.q_proj", "none", 0),
        ("Q_proj", "none", 0),
        ("layers.1", "none", 0),
        ("", "none", 0),
    ],
)
def test_a_pattern_matches_a_whole_name_or_all_after_a_dot(
    pattern: str, blocks: str, count: int
) -> None:
    hits = [name for name in NAMES if matches([pattern], name)]
    assert len(hits) == count
    if blocks == "one":
        assert all(name.startswith("model.layers.1.") for name in hits)


@pytest.mark.parametrize(
    "router",
    [
        "mlp.gate",  # Qwen3-MoE, DeepSeek-V3, Mixtral
        "block_sparse_moe.gate",  # Mixtral's files
        "mlp.gate.wg",  # HunYuan
        "mlp.router",  # gpt-oss
        "ffn.router.layer",  # DBRX
        "mlp.shared_expert_gate",  # Qwen2-MoE
        "mlp.router_gate",  # Doge
        "altup.prediction_coefs",  # Gemma-3n, and what follows
        "altup.correction_coefs",
        "altup.modality_router",
    ],
)
def test_routers_stay_dense_unless_asked(router: str) -> None:
    name = f"model.layers.3.{router}"
    assert not prunable().allow(name)
    assert prunable("prunable.exclude=[]").allow(name)


def test_no_projection_of_a_dense_model_is_taken_for_a_router() -> None:
    names = [*NAMES, "model.layers.0.mlp.gate_up_proj", "transformer.h.0.mlp.experts.1.gate_proj"]
    assert list(prunable().without_dense(dict.fromkeys(names))) == names


def test_a_linear_is_prunable_where_include_matches_and_exclude_does_not() -> None:
    chosen = prunable("prunable.include=[self_attn.*,down_proj]", "prunable.exclude=[o_proj]")
    assert [name for name in NAMES[:4] if chosen.allow(name)] == [NAMES[0], NAMES[3]]


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest_linears() -> None:
    wrong = prunable("prunable.include=[q_proj,self_attn.o_porj]")
    with pytest.raises(ValueError, match=r"prunable\.include=self_attn\.o_porj matches no") as e:
        wrong.check(SAME)
    assert "nearest: self_attn.o_proj" in str(e.value)
    assert "the blocks hold self_attn.q_proj, self_attn.o_proj, mlp.gate_proj" in str(e.value)
    assert "\n" not in str(e.value)


def test_the_patterns_of_the_yaml_may_match_nothing() -> None:
    assert not any(matches(defaults(), name) for name in NAMES)
    prunable().check(SAME)
    prunable(f"prunable.exclude=[{defaults()[0]}]").check(SAME)


def test_an_empty_pattern_is_refused_as_one() -> None:
    with pytest.raises(ValueError, match=r"include has an empty pattern \(\[''\]\), .*take it out"):
        prunable("prunable.include=['']").check(SAME)


def test_leaving_every_linear_dense_is_refused() -> None:
    with pytest.raises(ValueError, match="leave none of the 12 linears in the blocks to prune"):
        prunable("prunable.exclude=[self_attn.*,mlp.*]").check(SAME)


def test_routers_that_a_list_of_ones_own_lets_in_are_named() -> None:
    gate = "model.layers.0.mlp.gate"
    assert prunable().routers_let_in({**SAME, gate: gate}) == []
    assert prunable("prunable.exclude=[o_proj]").routers_let_in({**SAME, gate: gate}) == [gate]


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("gate_proj", [True, False]),
        ("w1", [True, False]),
        ("block_sparse_moe.*", [True, False]),
        ("mlp.experts.1.*", [True, True]),
        ("experts.gate_up_proj", [False, True]),  # the tensor, and so all linears in it
        ("gate_up_proj[1, up]", [False, True]),  # a name with brackets, which a glob has too
        ("gate_up_proj[1, gate]", [False, False]),
    ],
)
def test_a_pattern_may_be_of_the_saved_name_or_of_the_modules(
    pattern: str, hits: list[bool]
) -> None:
    only = PrunableNames(include=(pattern,), exclude=())
    never = PrunableNames(include=None, exclude=(pattern,))
    assert [only.allow(*names) for names in SAVED.items()] == hits
    assert [never.allow(*names) for names in SAVED.items()] == [not hit for hit in hits]
    assert bool(only.patterns_without_match(SAVED)) != any(hits)


def test_a_pattern_that_matches_nothing_is_answered_with_names_of_both_kinds() -> None:
    for wrong, near in (("gate_porj", "gate_proj"), ("w11", "w1")):
        with pytest.raises(ValueError, match=f"={wrong} matches no .*; nearest: .*{near}") as e:
            PrunableNames(include=None, exclude=(wrong,)).check(SAVED)
        assert "blocks hold block_sparse_moe.experts.*.w1, mlp.experts.gate_up_proj" in str(e.value)
        assert "in memory mlp.experts.*.gate_proj, mlp.experts.*.up_proj" in str(e.value)
