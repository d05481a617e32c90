from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import dsnot_oracle
from support.contracts import assert_same_bits, bits
from support.streaming import Elsewhere, brought_back, streamed
from support.tiers import slow_but_for
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.walk import Calibration, Visit
from sparsemend.data.base import Examples
from sparsemend.instruments import LiveBytes
from sparsemend.method.base import Workbench
from sparsemend.method.dsnot import swaps as dsnot_swaps
from sparsemend.method.dsnot.dsnot import DSnoT
from sparsemend.method.dsnot.swaps import (
    InputMoments,
    SwapRule,
    initial_keep,
    refine,
    refine_groups,
)
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern()
SETTINGS: dict[str, Any] = {
    "max_cycles": 50,
    "threshold": 0.1,
    "threshold_units": "token_sum",
    "variance_power": 1.0,
    "variance": "within",
    "same_sign": False,
    "refine": "all",
    "mode": "clean",
    "start": "pruner",
    "sparsegpt_weights": "mask_only",
}


def rule(**settings: Any) -> SwapRule:
    usual = {"max_cycles": 50, "threshold": 0.1, "variance_power": 1.0}
    return SwapRule(**{**usual, "same_sign": False, "faithful": False, **settings})


def layer(
    rows: int, columns: int, *, seed: int, dead: int = 0, coarse: bool = False
) -> tuple[Tensor, InputMoments]:
    """A random weight and its inputs' moments; `coarse` makes ties, `dead` constant inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, columns, generator=generator) * torch.rand(columns, generator=generator)
    x += 0.3 * torch.randn(columns, generator=generator)
    x[:, :dead] = 0
    x[:, dead : 2 * dead] = 0.5
    x = x[:, torch.randperm(columns, generator=generator)]
    weight = torch.randn(rows, columns, generator=generator)
    if not coarse:
        moments = InputMoments(x.sum(0), x.square().sum(0), x.var(0, correction=0))
        return weight, moments
    ones = torch.ones(columns)
    return (weight * 2).round(), InputMoments(x.sum(0).sign(), ones, ones)


def cases() -> Iterator[tuple[int, dict[str, Any]]]:
    names = ("threshold", "variance_power", "same_sign")
    options = product((0.0, 0.1, 5.0), (0.0, 1.0), (False, True))
    for seed, values in enumerate(options):
        yield seed, dict(zip(names, values, strict=True))


def test_swaps_of_a_small_example_worked_by_hand() -> None:
    # Row 0: E = 1 - 2 = -1 revives -2 and prunes the weaker positive, 3: E = (-1 + 3) + 2 = 4;
    # then revives 1 and, having no negative left, prunes the strongest positive, 4.
    # Row 1: E = 2 + 1 = 3 revives 2 and prunes -5: E = (3 - 5) - 2 = -4; no negative to revive.
    weight = torch.tensor([[1.0, 4.0, -2.0, 3.0], [2.0, 1.0, -5.0, 6.0]])
    moments = InputMoments(torch.ones(4), torch.ones(4), torch.ones(4))
    start = initial_keep(weight.abs(), 0.5, UNSTRUCTURED)
    assert start.int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]
    once = refine(weight, moments, start, rule(max_cycles=1))
    assert once.keep.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert (once.before.tolist(), once.after.tolist()) == ([-1.0, 3.0], [4.0, -4.0])
    twice = refine(weight, moments, start, rule(max_cycles=2))
    assert twice.keep.int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert refine(weight, moments, start, rule(same_sign=True)).keep.equal(start)
    assert refine(weight, moments, start, rule(threshold=2)).keep.int().tolist() == [
        [0, 1, 0, 1],
        [1, 0, 0, 1],
    ]


def test_the_group_of_the_revived_weight_loses_its_lowest_score() -> None:
    # 2:4, pruned 1 and -2: E = -1, revives -2, prunes 3 (lower score than 4) whatever its sign;
    # E would be 4, of another sign than -1, so the swap is refused.  With -2.5 for 3 it is -1.5.
    moments = InputMoments(torch.ones(4), torch.ones(4), torch.ones(4))
    score = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    start = initial_keep(score, 0.5, Pattern(2, 4))
    refused = torch.tensor([[1.0, 4.0, -2.0, 3.0]])
    assert refine_groups(refused, moments, start, score, 4, rule()).keep.equal(start)
    taken = torch.tensor([[1.0, 4.0, -2.0, -2.5]])
    refined = refine_groups(taken, moments, start, score, 4, rule(max_cycles=1))
    assert refined.keep.int().tolist() == [[0, 1, 1, 0]]
    assert refined.after.tolist() == [-1.5]


@pytest.mark.parametrize("mode", ["clean", "faithful"])
@pytest.mark.parametrize("columns", slow_but_for([32, 48, 128, 256], [48]))
@pytest.mark.parametrize("kind", ["plain", "dead", "ties", "magnitude"])
def test_rows_equal_the_slow_implementation(mode: str, columns: int, kind: str) -> None:
    dead, coarse = (5, False) if kind != "ties" else (0, True)
    for sparsity in (0.3, 0.6, 0.8):
        for seed, options in cases():
            weight, moments = layer(
                3, columns, seed=seed, dead=dead if kind != "plain" else 0, coarse=coarse
            )
            score = weight.abs()
            if kind in ("plain", "dead"):
                score = score * moments.squared.sqrt()
            start = initial_keep(score, sparsity, UNSTRUCTURED)
            ours = refine(weight, moments, start, rule(**options, faithful=mode == "faithful"))
            s, q, v = moments.total, moments.squared, moments.variance
            theirs = dsnot_oracle.dsnot(
                weight, s, q, v, score, sparsity, max_cycles=50, mode=mode, **options
            )
            assert ours.keep.equal(theirs), (sparsity, options)


@pytest.mark.parametrize("mode", ["clean", "faithful"])
@pytest.mark.parametrize(
    "pattern",
    slow_but_for(
        [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4)], [Pattern(2, 4), Pattern(4, 8)]
    ),
)
def test_groups_equal_the_slow_implementation(mode: str, pattern: Pattern) -> None:
    for columns, dead in ((48, 0), (64, 5), (256, 5)):
        for seed, options in cases():
            weight, moments = layer(3, columns, seed=seed, dead=dead, coarse=seed % 3 == 0)
            score = weight.abs() * moments.squared.sqrt()
            start = initial_keep(score, 0.5, pattern)
            faithful = mode == "faithful"
            ours = refine_groups(
                weight,
                moments,
                start,
                score,
                pattern.group_size,
                rule(**options, faithful=faithful),
            )
            del options["same_sign"]
            theirs = dsnot_oracle.dsnot_n_m(
                weight,
                moments.total,
                moments.squared,
                moments.variance,
                score,
                pattern.kept,
                pattern.group_size,
                max_cycles=50,
                mode=mode,
                **options,
            )
            assert ours.keep.equal(theirs), (columns, options)


@pytest.mark.parametrize("columns", [24, 48, 200])
def test_every_row_keeps_its_number_of_zeros(columns: int) -> None:
    weight, moments = layer(64, columns, seed=3, dead=4)
    start = torch.rand(64, columns, generator=torch.Generator().manual_seed(0)) < 0.4
    refined = refine(weight, moments, start, rule(threshold=0))
    assert refined.keep.sum(1).equal(start.sum(1))
    assert not refined.keep.equal(start)


def test_modes_agree_where_every_row_has_enough_weights_of_either_sign() -> None:
    weight, moments = layer(64, 320, seed=4)
    start = initial_keep(weight.abs() * moments.squared.sqrt(), 0.5, UNSTRUCTURED)
    D = weight * moments.total
    members = [(part & sign).sum(1).min() for part in (start, ~start) for sign in (D < 0, D > 0)]
    assert min(members) >= 50
    clean = refine(weight, moments, start, rule())
    faithful = refine(weight, moments, start, rule(faithful=True))
    assert clean.keep.equal(faithful.keep)
    assert not clean.keep.equal(start)


def test_groups_keep_their_pattern_also_with_a_short_last_group() -> None:
    weight, moments = layer(32, 62, seed=5)
    score = weight.abs() * moments.squared.sqrt()
    start = initial_keep(score, 0.5, Pattern(2, 4))
    keep = refine_groups(weight, moments, start, score, 4, rule(threshold=0)).keep
    assert (keep[:, :60].reshape(32, -1, 4).sum(2) == 2).all()
    assert (keep[:, 60:].sum(1) == 0).all()
    assert not keep.equal(start)


def test_a_constant_input_is_never_revived() -> None:
    weight, moments = layer(64, 128, seed=6, dead=8)
    start = initial_keep(weight.abs(), 0.5, UNSTRUCTURED)
    revived = refine(weight, moments, start, rule()).keep & ~start
    assert revived.any()
    assert not revived[:, moments.variance == 0].any()


def test_the_reported_error_is_that_of_the_support() -> None:
    weight, moments = layer(64, 200, seed=7)
    start = initial_keep(weight.abs(), 0.6, UNSTRUCTURED)
    refined = refine(weight, moments, start, rule())
    D = (weight * moments.total).double()
    exact = D.masked_fill(refined.keep, 0).sum(1).float()
    # 100 fp32 additions to numbers below 200: 100 * 200 * 2^-24 bounds the rounding.
    torch.testing.assert_close(refined.after, exact, rtol=0, atol=2e-3)
    assert refined.after.abs().mean() < refined.before.abs().mean()


def test_rows_do_not_depend_on_the_chunk_they_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = layer(40, 96, seed=8)
    start = initial_keep(weight.abs(), 0.5, UNSTRUCTURED)
    whole = [refine(weight, moments, start, rule(faithful=f)).keep for f in (False, True)]
    monkeypatch.setitem(dsnot_swaps.CHUNK_WEIGHTS, "cpu", 7 * 96)
    parts = [refine(weight, moments, start, rule(faithful=f)).keep for f in (False, True)]
    assert whole[0].equal(parts[0])
    assert whole[1].equal(parts[1])


def test_half_precision_weights_give_the_swaps_of_their_fp32_copies() -> None:
    weight, moments = layer(16, 128, seed=9)
    half = weight.half()
    start = initial_keep(half.float().abs(), 0.5, UNSTRUCTURED)
    from_half, from_copy = (refine(w, moments, start, rule()) for w in (half, half.float()))
    assert from_half.keep.equal(from_copy.keep)
    assert from_half.after.equal(from_copy.after)


class Scene:
    """A pruned tiny model, its dense weights, and what DSnoT may use."""

    def __init__(
        self,
        make_model: Callable[..., PreTrainedModel],
        tokens: Tensor,
        pruner: Pruner,
        pattern: str = "unstructured",
        family: str = "llama",
    ) -> None:
        self.make = lambda: make_model(family)
        self.model = self.make()
        calibration = Calibration(tokens.split(3))
        self.dense = {n: m.weight.clone() for n, m in prunable_linears(self.model).items()}
        rates = dict.fromkeys(self.dense, 0.5)
        parsed = Pattern.parse(pattern)
        prune(self.model, calibration, pruner, rates, parsed)
        self.bench = Workbench(
            calibration=calibration,
            train=Examples.of(tokens),
            validation=Examples.of(tokens),
            pruner=pruner,
            allocation=rates,
            sparsity=0.5,
            pattern=parsed,
            load_dense=self.make,
            make_trainer=_no_trainer,
            device=torch.device("cpu"),
            out=Path(),
            seed=0,
        )

    def repair(self, **settings: Any) -> dict[str, Any]:
        return DSnoT(**{**SETTINGS, **settings}).repair(self.model, self.bench)

    def supports(self) -> dict[str, Tensor]:
        return {name: linear.keep for name, linear in sparse_linears(self.model)}


def _no_trainer(*_: Any, **__: Any) -> Any:
    raise AssertionError("DSnoT trains nothing")


def test_repair_moves_zeros_and_keeps_their_number(make_model, tokens) -> None:
    scene = Scene(make_model, tokens, Wanda(variant=False))
    before = scene.supports()
    report = scene.repair()
    check_supports(scene.model)
    moved = 0
    for name, linear in sparse_linears(scene.model):
        keep = linear.keep
        assert keep.sum(1).equal(before[name].sum(1))
        assert linear.weight[keep].equal(scene.dense[name][keep])
        moved += int((keep != before[name]).sum())
    assert moved
    assert len(report["swaps_per_block"]) == 3
    assert min(report["swaps_per_block"]) > 0
    assert report["mean_error_after"] < report["mean_error_before"]
    assert 0 < report["mask_moved"] < 1


def test_repair_without_refinement_gives_the_pruner_s_model(make_model, tokens) -> None:
    scene = Scene(make_model, tokens, Wanda(variant=False))
    before = scene.supports()
    report = scene.repair(refine="none")
    assert all(keep.equal(before[name]) for name, keep in scene.supports().items())
    assert report["swaps_per_block"] == [0, 0, 0]
    assert report["mask_moved"] == 0


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_attention_alone_is_refined_on_request(make_model, tokens, family) -> None:
    scene = Scene(make_model, tokens, Magnitude(group="row"), family=family)
    before = scene.supports()
    scene.repair(refine="attention")
    moved = {n for n, keep in scene.supports().items() if not keep.equal(before[n])}
    assert moved
    assert all("attn" in name or "attention" in name for name in moved)


def test_given_masks_are_where_the_swaps_begin(make_model, tokens) -> None:
    scene = Scene(make_model, tokens, Magnitude(group="layer"))
    before = scene.supports()
    scene.repair(start="given", refine="none")
    assert all(keep.equal(before[name]) for name, keep in scene.supports().items())
    scene.repair(start="given")
    assert all(keep.sum(1).equal(before[n].sum(1)) for n, keep in scene.supports().items())


@pytest.mark.parametrize("start", ["pruner", "given"])
def test_obs_keeps_sparsegpt_s_updates_and_revives_dense_values(make_model, tokens, start) -> None:
    scene = Scene(make_model, tokens, SparseGPT(block_size=16, damping=0.01))
    updated = {name: m.weight.clone() for name, m in sparse_linears(scene.model)}
    before = scene.supports()
    scene.repair(sparsegpt_weights="obs", start=start)
    check_supports(scene.model)
    name = "model.layers.0.self_attn.q_proj"  # later blocks see other inputs than while pruning
    keep = scene.supports()[name]
    weight = scene.model.get_submodule(name).weight
    stayed, revived = keep & before[name], keep & ~before[name]
    assert revived.any()
    torch.testing.assert_close(weight[stayed], updated[name][stayed])
    assert weight[revived].equal(scene.dense[name][revived])
    assert not weight[stayed].equal(scene.dense[name][stayed])


@pytest.mark.parametrize("group_size", [None, 4])
def test_the_error_that_updated_weights_leave_is_driven_too(group_size: int | None) -> None:
    """What is reported is the mean error of the outputs: dense ones less those that are left."""
    dense, moments = layer(16, 64, seed=3)
    score = dense.abs() * moments.squared.sqrt()
    keep = initial_keep(score, 0.5, Pattern(2, 4) if group_size else UNSTRUCTURED)
    updated = torch.where(keep, dense + 0.1 * torch.randn(16, 64), dense)
    left = ((dense - updated) * moments.total).sum(1)
    if group_size is None:
        refined = refine(updated, moments, keep, rule(), left)
    else:
        refined = refine_groups(updated, moments, keep, score, group_size, rule(), left)
    assert not refined.keep.equal(keep)
    for support, said in ((keep, refined.before), (refined.keep, refined.after)):
        error = ((dense - updated * support) * moments.total).sum(1)
        torch.testing.assert_close(said, error, atol=1e-3, rtol=1e-4)


def test_obs_hands_on_what_sparsegpt_s_updates_leave(make_model, tokens, monkeypatch) -> None:
    scene = Scene(make_model, tokens, SparseGPT(block_size=16, damping=0.01))
    handed: list[Tensor | None] = []

    def noted(*arguments: Any) -> Any:
        handed.append(arguments[4])
        return refine(*arguments)

    monkeypatch.setattr("sparsemend.method.dsnot.dsnot.refine", noted)
    scene.repair(sparsegpt_weights="obs")
    assert all(left is not None and left.abs().sum() > 0 for left in handed)
    handed.clear()
    scene.repair(sparsegpt_weights="mask_only")
    assert all(left is None for left in handed)


@pytest.mark.parametrize(
    ("asked", "cycles"), [(50, 50), (3.0, 3), (0, 0), (0.0122, 50), (0.0001, 1), (0.5, 2048)]
)
def test_cycles_are_a_number_or_a_share_of_the_inputs(asked: float, cycles: int) -> None:
    assert DSnoT(**SETTINGS | {"max_cycles": asked}).cycles_of(4096) == cycles


def test_cycles_that_are_neither_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_cycles 2\.5 is neither a whole number"):
        DSnoT(**SETTINGS | {"max_cycles": 2.5})


def test_patterns_hold_through_repair(make_model, tokens) -> None:
    scene = Scene(make_model, tokens, Wanda(variant=False), pattern="2:4")
    report = scene.repair(threshold=0.0)
    assert sum(report["swaps_per_block"]) > 0
    for keep in scene.supports().values():
        assert (keep.reshape(-1, 4).sum(1) == 2).all()


STREAMED: list[tuple[str, str, dict[str, Any]]] = [
    ("wanda", "unstructured", {}),
    ("wanda", "2:4", {"refine": "attention"}),
    ("sparsegpt", "unstructured", {"sparsegpt_weights": "obs", "start": "given"}),
    ("sparsegpt", "2:4", {"sparsegpt_weights": "obs"}),
]


@pytest.mark.parametrize(("pruner", "pattern", "settings"), slow_but_for(STREAMED, STREAMED[:1]))
def test_streamed_blocks_are_repaired_to_the_same_bits(
    make_model, tokens, pruner: str, pattern: str, settings: dict[str, Any]
) -> None:
    made: Pruner = Wanda(variant=False)
    if pruner == "sparsegpt":
        made = SparseGPT(block_size=16, damping=0.01)

    def scene() -> Scene:
        return Scene(make_model, tokens, made, pattern, family="gemma2")

    whole, walked = scene(), scene()
    streamed(walked.model)
    dense = streamed(walked.make())
    object.__setattr__(walked.bench, "load_dense", lambda: dense)
    assert walked.repair(**settings) == whole.repair(**settings)
    written = residency_of(walked.model)
    assert isinstance(written, Elsewhere)
    assert written.most == residency_of(dense).most == 1
    assert_same_bits(bits(brought_back(walked.model)), bits(whole.model))


def test_a_streamed_repair_cut_off_goes_on_with_its_counts(
    make_model, tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (Scene(make_model, tokens, Wanda(variant=False)) for _ in range(2))
    expected = whole.repair()
    repair_block, visited = DSnoT._repair_block, []

    def cut(self: DSnoT, visit: Visit, *rest: Any) -> Any:
        if visit.index == 2 and 2 not in visited:
            visited.append(2)
            raise KeyboardInterrupt
        visited.append(visit.index)
        return repair_block(self, visit, *rest)

    monkeypatch.setattr(DSnoT, "_repair_block", cut)
    residency = residency_of(streamed(broken.model))
    assert isinstance(residency, Elsewhere)
    with pytest.raises(KeyboardInterrupt):
        broken.repair()
    residency.finished = 2
    assert broken.repair() == expected
    assert visited == [0, 1, 2, 2]
    assert_same_bits(bits(brought_back(broken.model)), bits(whole.model))


@pytest.mark.slow  # measures memory of deep models
def test_streamed_blocks_need_no_more_memory_in_a_deeper_model(make_model, tokens) -> None:
    def peak(depth: int) -> int:
        def make(family: str) -> PreTrainedModel:
            return make_model(family, num_hidden_layers=depth, intermediate_size=512)

        scene = Scene(make, tokens, Wanda(variant=False))
        dense = streamed(scene.make())
        object.__setattr__(scene.bench, "load_dense", lambda: dense)
        streamed(scene.model)
        with LiveBytes([]) as live:
            scene.repair(start="given", sparsegpt_weights="obs", max_cycles=2)
        return live.peak

    assert peak(6) == peak(2)


def test_a_threshold_per_token_is_multiplied_by_the_sequence_length(make_model, tokens) -> None:
    by_sum, by_mean = (Scene(make_model, tokens, Wanda(variant=False)) for _ in range(2))
    by_sum.repair(threshold=24 * 0.25)  # the windows have 24 tokens
    by_mean.repair(threshold=0.25, threshold_units="token_mean")
    supports = by_mean.supports()
    assert all(keep.equal(supports[name]) for name, keep in by_sum.supports().items())


def test_pooled_variance_gives_other_swaps(make_model, tokens) -> None:
    within, pooled = (Scene(make_model, tokens, Wanda(variant=False)) for _ in range(2))
    within.repair(max_cycles=3)
    pooled.repair(max_cycles=3, variance="pooled")
    supports = pooled.supports()
    assert any(not keep.equal(supports[name]) for name, keep in within.supports().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mode", "fast", "method.mode 'fast' is not one of: clean, faithful"),
        ("refine", "mlp", "not one of: all, attention, none"),
        ("threshold", -1.0, "method.threshold -1.0 is negative"),
        ("max_cycles", -1, "method.max_cycles -1 is negative"),
    ],
)
def test_a_bad_option_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSnoT(**{**SETTINGS, name: value})
