"""A walk builds each effective weight once per block, and no bit depends on that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model
from transformers import PreTrainedModel

from sparsemend.method.adapter import lors_function
from sparsemend.method.adapter.block_errors import ModelPair, output_errors
from sparsemend.method.losa.losa import Losa
from sparsemend.method.losa.progress import losa_linears
from sparsemend.method.losa.walks import merged_by_block


def attached(out: Path) -> PreTrainedModel:
    method, model = method_of("losa"), pruned_model()
    assert isinstance(method, Losa)
    method.attach(model, bench_for(out))
    with torch.no_grad():
        for linear in losa_linears(model).values():
            linear.lora_b.fill_(0.01)
    return model


def test_a_walk_builds_each_weight_once_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bench = attached(tmp_path), bench_for(tmp_path)
    pair = ModelPair(model, bench.load_dense(), bench.calibration)
    expected = output_errors(pair)
    built: list[int] = []
    build = lors_function.fused_weight
    monkeypatch.setattr(lors_function, "fused_weight", lambda *a: built.append(1) or build(*a))
    linears = losa_linears(model).values()
    with merged_by_block(model):
        assert output_errors(pair) == expected
        held = [linear for linear in linears if linear.merged is not None]
    assert len(built) <= 2 * len(linears)  # a pass to record the first block's inputs, and the walk
    assert 0 < len(held) < len(linears)  # of the last block alone
    assert all(linear.merged is None and not linear.keeps_merged for linear in linears)


def test_what_moves_a_weight_drops_what_was_kept_of_it(tmp_path: Path) -> None:
    model = attached(tmp_path)
    linear = next(iter(losa_linears(model).values()))
    x = torch.eye(linear.in_features)
    with merged_by_block(model), torch.no_grad():
        linear.eval()
        before = linear(x)
        linear.set_effective_(2 * linear.effective_weight(), linear.keep)
        torch.testing.assert_close(linear(x), 2 * before)
        linear.set_rank_(1, torch.zeros(1, linear.in_features))
        assert torch.equal(linear(x).T, linear.effective_weight())
