"""A model whose blocks lie in files is pruned and exported with the bits of one in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from support.checkpoints import pickled
from support.configs import compose
from support.families import random_model
from support.layouts import LAYOUTS, layout_model
from support.streamed import Pruning, assert_equal, both_ways, source, written
from torch import Tensor

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import residency_of, visit_blocks, visit_linears
from sparsemend.errors import CannotStream
from sparsemend.instruments import LiveBytes
from sparsemend.pretrained.streamed_blocks import unbroken
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.export import cast_
from sparsemend.sparsity_schedule.uniform import Uniform

WANDA = Wanda(variant=False)


def members(*overrides: str) -> dict[str, Any]:
    """Pruner, schedule and rules of a composed config."""
    cfg = compose("run", list(overrides))
    built = {
        name: instantiate(
            cfg[group],
            _convert_="all",
            _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS,
        )
        for name, group in (("pruner", "pruner"), ("schedule", "sparsity_schedule"))
    }
    rules = ("pattern", "rounding", "true_sequential")
    return built | {rule: cfg[rule] for rule in rules}


CASES = [("gemma2", "bfloat16", ["sparsity_schedule=owl"])]
SLOW = [
    ("opt", "float32", ["pruner=sparsegpt", "pattern=2:4"]),
    ("gpt2", "bfloat16", ["pruner=magnitude", "sparsity_schedule=lamp", "rounding=exact_budget"]),
]
SLOW += [
    (family, dtype, overrides)
    for family, dtype in (
        ("llama", "float32"),
        ("llama", "bfloat16"),
        ("gpt2", "float32"),
        ("opt", "bfloat16"),
        ("mixtral", "bfloat16"),
    )
    for overrides in (
        [],
        ["pruner=sparsegpt"],
        ["pruner=magnitude", "rounding=exact_budget"],
        ["pattern=2:4"],
        ["sparsity_schedule=owl"],
        ["true_sequential=true"],
    )
]


@pytest.mark.parametrize(
    ("family", "dtype", "overrides"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_blocks_in_files_are_pruned_and_exported_with_the_bits_of_blocks_in_memory(
    family: str, dtype: str, overrides: list[str], tokens: Tensor, tmp_path: Path
) -> None:
    model = layout_model(family) if family in LAYOUTS else random_model(family)
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    pruning = Pruning(tokens=tokens[:4], **members(*overrides))
    assert_equal(*both_ways(tmp_path / "dense", dtype, pruning))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "dense"
    random_model("llama").save_pretrained(folder)
    return folder


class Interrupted(Wanda):
    """Wanda that dies at one of its calls."""

    left = 10  # the model has 3 blocks of 7 linears

    def score(self, weight: Tensor, statistic: Any) -> Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().score(weight, statistic)


@pytest.mark.parametrize(
    "rounding", [pytest.param("pruner", marks=pytest.mark.slow), "exact_budget"]
)
def test_a_pruning_that_died_goes_on_after_its_last_whole_block(
    rounding: str, llama: Path, tokens: Tensor, tmp_path: Path
) -> None:
    rules = {"schedule": Uniform(), "tokens": tokens[:2], "rounding": rounding, "key": "one"}
    whole = source(llama).open_streamed(folder=tmp_path / "whole")
    Pruning(pruner=WANDA, **rules)(whole)
    dying = source(llama).open_streamed(folder=tmp_path / "blocks")
    with pytest.raises(KeyboardInterrupt):
        Pruning(pruner=Interrupted(variant=False), **rules)(dying)
    assert [p.name for p in (tmp_path / "blocks/prune").iterdir()] == ["00000.safetensors"]
    again = source(llama).open_streamed(folder=tmp_path / "blocks")
    first = (tmp_path / "blocks/prune/00000.safetensors").stat().st_mtime_ns
    Pruning(pruner=WANDA, **rules)(again)
    assert (tmp_path / "blocks/prune/00000.safetensors").stat().st_mtime_ns == first
    assert_equal(written(whole, tmp_path / "a"), written(again, tmp_path / "b"))


def test_blocks_of_another_key_or_after_a_gap_are_not_taken_up(
    llama: Path, tokens: Tensor, tmp_path: Path
) -> None:
    model = source(llama).open_streamed(folder=tmp_path)
    Pruning(pruner=WANDA, schedule=Uniform(), tokens=tokens[:2], key="one")(model)
    files = sorted((tmp_path / "prune").iterdir())
    assert unbroken(tmp_path / "prune", "one", 3) == files
    assert unbroken(tmp_path / "prune", "other", 3) == []
    residency_of(model).begin("prune", "one")  # the same blocks, computed once more
    assert residency_of(model).take_up() == 3
    files[1].rename(tmp_path / "moved")
    assert unbroken(tmp_path / "prune", "one", 3) == files[:1]
    model = source(llama).open_streamed(folder=tmp_path)
    Pruning(pruner=WANDA, schedule=Uniform(), tokens=tokens[:2], key="one")(model)
    third = files[2].read_bytes()
    files[1].write_bytes((tmp_path / "moved").read_bytes())
    assert unbroken(tmp_path / "prune", "one", 3) == files[:2]  # the third is of another second
    files[0].write_bytes(third[:-1])
    assert unbroken(tmp_path / "prune", "one", 3) == []


def test_a_body_that_fails_stores_nothing_and_leaves_no_weight(llama: Path, tmp_path: Path) -> None:
    model = source(llama).open_streamed(folder=tmp_path)
    before = {name: linear.weight.clone() for name, linear in visit_linears(model)}

    def fail() -> None:
        for _, _, block in visit_blocks(model, changes=True):
            for parameter in block.parameters():
                parameter.zero_()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert all(p.is_meta for p in find_blocks(model)[1].parameters())
    assert all(torch.equal(before[name], linear.weight) for name, linear in visit_linears(model))
    dense = source(llama).open_streamed(folder=None)
    with pytest.raises(RuntimeError, match="no folder"):
        next(visit_blocks(dense, changes=True))


def test_a_cast_for_an_export_writes_no_block(llama: Path, tokens: Tensor, tmp_path: Path) -> None:
    model = source(llama).open_streamed(folder=tmp_path)
    Pruning(pruner=WANDA, schedule=Uniform(), tokens=tokens[:2])(model)
    pruned = {name: linear.weight.clone() for name, linear in visit_linears(model)}
    files = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors"))
    cast_(model, torch.bfloat16)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")) == files
    for name, linear in visit_linears(model):
        assert torch.equal(linear.weight, pruned[name].bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("key", "left"), [(None, set()), ("one", {"prune"})])
def test_a_changed_block_s_earlier_file_goes_unless_it_may_be_taken_up(
    key: str | None, left: set[str], llama: Path, tmp_path: Path
) -> None:
    model = source(llama).open_streamed(folder=tmp_path)
    for stage in ("prune", "repair"):
        residency_of(model).begin(stage, key)
        for _, _, block in visit_blocks(model, changes=True):
            for parameter in block.parameters():
                parameter.add_(1)
    holding = {path.parent.name for path in tmp_path.rglob("*.safetensors")}
    assert holding == {"repair", *left}


def test_blocks_are_read_also_where_a_module_turns_its_very_tensors(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device whose module shares storage with the CPU's."""
    model = source(llama).open_streamed(folder=None)
    monkeypatch.setattr("torch.__future__._swap_module_params_on_conversion", True)
    assert all(float(linear.weight.square().sum()) > 0 for _, linear in visit_linears(model))


def test_a_change_of_a_block_that_is_there_to_be_read_is_refused(
    llama: Path, tmp_path: Path
) -> None:
    model = source(llama).open_streamed(folder=tmp_path)
    for _ in visit_blocks(model):
        with pytest.raises(RuntimeError, match=r"block 0 .* read only"):
            next(visit_blocks(model, changes=True))
        break


def test_what_a_killed_writer_was_at_is_no_obstacle_where_its_number_is_taken(
    llama: Path, tmp_path: Path
) -> None:
    writing = tmp_path / "prune/.00001.safetensors.1.partial"  # process 1 runs everywhere
    writing.mkdir(parents=True)
    (writing / "half").touch()
    residency_of(source(llama).open_streamed(folder=tmp_path)).begin("prune", "one")
    assert not writing.exists()


def test_memory_does_not_grow_with_the_number_of_blocks(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # LiveBytes sees one thread
    peaks = []
    for blocks in (2, 4):
        folder = tmp_path / str(blocks)
        random_model("llama", num_hidden_layers=blocks).save_pretrained(folder)
        with LiveBytes([]) as live:
            model = source(folder).open_streamed(folder=folder / "blocks")
            Pruning(pruner=WANDA, schedule=Uniform(), tokens=tokens)(model)
        peaks.append(live.peak)
        del model
    block = sum(p.numel() * 4 for p in find_blocks(random_model("llama"))[1][0].parameters())
    assert peaks[1] - peaks[0] < block / 10


def test_pickled_weights_cannot_be_read_block_by_block(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotStream, match=r"the weights of model .* are pickled"):
        source(pickled(tmp_path / "pickled", llama)).open_streamed(folder=None)


def in_the_hub(cache: Path, folder: Path, name: str) -> str:
    """The hub id of a folder that is moved into the hub's cache, as a download would lay it."""
    entry = cache / f"models--org--{name}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs/main").write_text("0a1b2c", encoding="utf-8")
    (entry / "snapshots").mkdir()
    folder.rename(entry / "snapshots/0a1b2c")
    return f"org/{name}"


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_model_of_the_hub_is_read_block_by_block_from_its_cache(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = random_model("llama")
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    name = in_the_hub(tmp_path, tmp_path / "saved", "tiny")
    assert source(Path(name)).weight_bytes() == 4 * sum(p.numel() for p in model.parameters())
    there = source(Path(name)).open_streamed(folder=None)
    assert there.generation_config.max_new_tokens == 7
    weights = dict(model.named_parameters())
    for full, linear in visit_linears(there):
        assert torch.equal(linear.weight, weights[f"{full}.weight"])


def test_a_model_of_the_hub_without_safetensors_cannot_be_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    random_model("llama").save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    shard = next((tmp_path / "saved").glob("model-00002*"))
    shard.rename(tmp_path / "left out")
    name = in_the_hub(tmp_path, tmp_path / "saved", "tiny")
    assert source(Path(name)).weight_bytes() is None
    with pytest.raises(CannotStream, match="the hub has no safetensors of model org/tiny"):
        source(Path(name)).open_streamed(folder=None)
