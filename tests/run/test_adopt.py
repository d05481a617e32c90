"""The support of an already pruned checkpoint against the pattern that a run is to hold."""

from __future__ import annotations

import logging

import pytest
import torch
from support.families import random_model

from sparsemend.blocks.find import prunable_linears
from sparsemend.run.adopt import check_existing
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_group, lowest_per_row

TWO_OF_FOUR = Pattern(2, 4)


def pruned(pattern: Pattern) -> torch.nn.Module:
    """A tiny model of plain linears, half of each zero, by group or by row."""
    model = random_model("llama")
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            score = linear.weight.abs()
            zeros = (
                lowest_per_row(score, score.shape[1] // 2)
                if pattern.unstructured
                else lowest_per_group(score, pattern)
            )
            linear.weight.masked_fill_(zeros, 0)
    return model


def test_a_pattern_that_the_checkpoint_breaks_is_refused_by_name() -> None:
    model = pruned(TWO_OF_FOUR)
    check_existing(model, None, TWO_OF_FOUR)
    name, linear = list(prunable_linears(model).items())[3]
    with torch.no_grad():
        linear.weight[1, 4:7] = 1.0
    with pytest.raises(ValueError, match=rf"{name} keeps [34] of 4 .* pattern=unstructured"):
        check_existing(model, None, TWO_OF_FOUR)


def test_a_masks_file_decides_before_the_zeros_do() -> None:
    model = pruned(TWO_OF_FOUR)
    supports = {n: linear.weight != 0 for n, linear in prunable_linears(model).items()}
    supports[next(iter(supports))][0, :4] = True  # kept weights that are zero
    check_existing(model, None, TWO_OF_FOUR)
    with pytest.raises(ValueError, match="keeps 4 of 4"):
        check_existing(model, supports, TWO_OF_FOUR)


def test_a_pattern_nobody_asked_to_hold_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_existing(pruned(Pattern()), None, Pattern())
        assert caplog.text == ""
        check_existing(pruned(TWO_OF_FOUR), None, Pattern())
    assert "set pattern=2:4" in caplog.text


def test_a_mixed_pattern_holds_by_the_sparsity_of_each_linear(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, mixed = pruned(Pattern(4, 8)), Pattern(-1, 8)
    check_existing(model, None, mixed)
    _, linear = next(iter(prunable_linears(model).items()))
    with torch.no_grad():
        linear.weight[0, linear.weight[0].nonzero()[0]] = 0  # as training may leave it
    with pytest.raises(ValueError, match=r"keeps 3\.99\d* of 8 inputs, no whole number"):
        check_existing(model, None, mixed)
    with pytest.raises(ValueError, match=r"keeps \d of 8 consecutive inputs"):
        check_existing(pruned(Pattern()), None, mixed)


def test_linears_without_any_weight_follow_no_pattern(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("llama")
    with torch.no_grad():
        next(iter(prunable_linears(model).values())).weight.zero_()
    with caplog.at_level(logging.WARNING):
        check_existing(model, None, Pattern())
    assert caplog.text == ""


def test_a_model_without_a_zero_is_refused() -> None:
    model = random_model("llama")
    with pytest.raises(ValueError, match=r"^pruner=existing found no zero in this model; choose"):
        check_existing(model, None, Pattern())
    check_existing(
        model,
        {
            n: torch.ones_like(linear.weight, dtype=torch.bool)
            for n, linear in prunable_linears(model).items()
        },
        Pattern(),
    )
