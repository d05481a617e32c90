"""A packed export is a whole folder that loads as the masked model: logits, text and supports."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.command_runs import (
    contract,
    put_workspace,
    result_of,
    sparsemend_dying,
    sparsemend_here,
)
from support.families import FAMILIES, random_model
from support.layouts import LAYOUTS, layout_model, prune_two_of_four_
from support.streamed import source
from support.tiers import slow_but_for
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend.blocks.find import linears_of, prunable_linears
from sparsemend.blocks.residency import residency_of, visit_blocks
from sparsemend.engine.packed import keep_of
from sparsemend.layout.unfold import unfold_
from sparsemend.pretrained.packed import load_packed_model, load_unpacked, packed_linears
from sparsemend.run import packed
from sparsemend.run.export import export
from sparsemend.sparse.linear import SparseLinear, sparse_linears

ALL = slow_but_for([*FAMILIES, *LAYOUTS], ["opt", "mixtral", "gpt2"])


def pruned(family: str, folder: Path) -> PreTrainedModel:
    """A random model of a family, loaded from `folder`, every prunable linear 2:4."""
    made = layout_model(family) if family in LAYOUTS else random_model(family)
    made.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.config.use_cache = False
    unfold_(model)
    prune_two_of_four_(model)
    return model.requires_grad_(False)


def write(model: PreTrainedModel, folder: Path, values: str = "float32") -> Path:
    export(model, None, folder, masks=folder / "none", card=None, values=values)
    return folder


def supports(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: keep_of(linear.mask, (linear.out_features, linear.in_features))
        for name, linear in packed_linears(model).items()
    }


def text(model: PreTrainedModel, prompt: Tensor, **settings: Any) -> Tensor:
    model.config.use_cache = True
    out = model.generate(
        prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, **settings
    )
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("family", ALL)
def test_a_family_comes_back_with_its_logits_text_and_supports(
    family: str, tokens: Tensor, tmp_path: Path
) -> None:
    model = pruned(family, tmp_path / "dense")
    loaded = load_packed_model(write(model, tmp_path / "model"))
    masks = {name: linear.keep for name, linear in sparse_linears(model)}
    read = supports(loaded)
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], keep) for name, keep in masks.items())
    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits
        logits = loaded(input_ids=tokens).logits
    # float32 sums in another order, through the blocks
    assert float((logits - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(text(loaded, tokens[:1, :5]), text(model, tokens[:1, :5]))
    assert not [name for name, tensor in loaded.named_parameters() if tensor.is_meta]


def test_a_padded_batch_has_the_text_of_each_prompt(tokens: Tensor, tmp_path: Path) -> None:
    loaded = load_packed_model(write(pruned("llama", tmp_path / "dense"), tmp_path / "model"))
    short, long = tokens[:1, :3], tokens[1:2, :6]
    batch = torch.cat([torch.cat([torch.zeros_like(short), short], dim=1), long])
    mask = torch.tensor([[0] * 3 + [1] * 3, [1] * 6])
    both = text(loaded, batch, attention_mask=mask)
    for row, prompt in zip(both, (short, long), strict=True):
        assert torch.equal(row[6:], text(loaded, prompt)[0, prompt.shape[1] :])


def test_kept_zeros_and_their_signs_stay_and_a_whole_support_stays_dense(tmp_path: Path) -> None:
    model = pruned("llama", tmp_path / "dense")
    (first, linear), (second, other), *_ = sparse_linears(model)
    row, column = linear.keep.nonzero()[0].tolist()
    with torch.no_grad():
        linear.weight[row, column] = -0.0
    whole = torch.ones(other.weight.shape, dtype=torch.bool)
    model.set_submodule(second, SparseLinear(other.weight, other.bias, whole))
    loaded = load_packed_model(write(model, tmp_path / "model"))
    weight = loaded.get_submodule(first).weight
    assert torch.equal(weight.view(torch.int32), linear.weight.view(torch.int32))
    assert supports(loaded)[first][row, column]
    assert type(loaded.get_submodule(second)) is nn.Linear
    assert torch.equal(loaded.get_submodule(second).weight, other.weight)


def test_experts_in_one_tensor_are_packed_together(tmp_path: Path) -> None:
    """Where one of them keeps all its weights, and so has no support."""
    model = pruned("gpt_oss", tmp_path / "dense")
    name, linear = next((n, m) for n, m in sparse_linears(model) if ".experts.2." in n)
    dense = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    dense.requires_grad_(False)
    model.set_submodule(name, dense)
    loaded = load_packed_model(write(model, tmp_path / "model"))
    assert supports(loaded)[name].all()
    assert torch.equal(loaded.get_submodule(name).weight, dense.weight)


def test_a_large_model_is_several_files_each_with_its_own_linears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pruned("llama", tmp_path / "dense")
    monkeypatch.setattr(packed, "SHARD", 10_000)
    folder = write(model, tmp_path / "model")
    files = sorted(path.name for path in folder.glob("packed-*"))
    assert files == [f"packed-{n:05d}-of-{len(files):05d}.safetensors" for n in (1, 2, 3, 4)]
    for file in files[1:]:
        with safe_open(folder / file, framework="pt") as opened:
            shapes = json.loads(opened.metadata()["shapes"])
            assert len(shapes) == 7
            assert {f"{name}.values" for name in shapes} < set(opened.keys())
    assert len(packed_linears(load_packed_model(folder))) == 21


@pytest.mark.parametrize("family", slow_but_for(["llama", "mixtral", "gpt2"], ["llama"]))
def test_a_model_that_streams_is_packed_a_block_at_a_time(family: str, tmp_path: Path) -> None:
    whole = pruned(family, tmp_path / "dense")
    keeps = {name: linear.keep for name, linear in sparse_linears(whole)}
    streamed = source(tmp_path / "dense").open_streamed(folder=tmp_path / "blocks")
    residency_of(streamed).begin("prune")
    count = 0
    for _, name, block in visit_blocks(streamed, changes=True):
        count += 1
        for inner, linear in linears_of(block).items():
            if (keep := keeps.get(f"{name}.{inner}")) is not None:
                block.set_submodule(inner, SparseLinear(linear.weight, linear.bias, keep))
    one = load_packed_model(write(streamed, tmp_path / "one"))
    other = load_packed_model(write(whole, tmp_path / "other"))
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert len(packed_linears(one)) == len(keeps)
    assert len(list((tmp_path / "one").glob("packed-*"))) == count + 1
    assert len(list((tmp_path / "other").glob("packed-*"))) == 1


def test_unpacked_it_has_the_bits_that_were_packed(tmp_path: Path) -> None:
    model = pruned("llama", tmp_path / "dense").bfloat16()
    folder = write(model, tmp_path / "model", "bfloat16")
    back = load_unpacked(folder, dtype=torch.bfloat16, attention=None, trust_remote_code=False)
    for name, linear in sparse_linears(model):
        assert torch.equal(back.get_submodule(name).weight, linear.weight)
    assert len(prunable_linears(back)) == 21
    back.save_pretrained(tmp_path / "saved")


def test_int8_is_off_by_its_rounding_alone(tokens: Tensor, tmp_path: Path) -> None:
    model = pruned("llama", tmp_path / "dense")
    loaded = load_packed_model(write(model, tmp_path / "model", "int8"))
    for name, linear in sparse_linears(model):
        step = linear.weight.abs().amax(1, keepdim=True) / 127
        off = (loaded.get_submodule(name).weight - linear.weight).abs()
        assert bool((off <= step * 0.5001).all())
        assert torch.equal(supports(loaded)[name], linear.keep)
    assert torch.isfinite(loaded(tokens).logits).all()


def test_a_packed_model_is_not_saved_as_what_no_class_loads(tmp_path: Path) -> None:
    loaded = load_packed_model(write(pruned("llama", tmp_path / "dense"), tmp_path / "model"))
    with pytest.raises(ValueError, match=r"copy its folder, or .* export_form=dense"):
        loaded.save_pretrained(tmp_path / "saved")


def test_what_cannot_be_packed_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    model = pruned("llama", tmp_path / "dense")
    name, linear = list(sparse_linears(model))[9]
    row, column = linear.keep.nonzero()[0].tolist()
    with torch.no_grad():
        linear.weight[row, column] = float("inf")
    with pytest.raises(ValueError, match=f"{name}: 1 weights are not finite"):
        write(model, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]
    with pytest.raises(ValueError, match="no linear of the decoder blocks has a zero"):
        write(random_model("llama"), tmp_path / "model")


@pytest.mark.slow
def test_a_run_that_is_killed_in_its_export_leaves_none_and_resumes_to_a_whole_one(
    tmp_path: Path,
) -> None:
    workspace = put_workspace(tmp_path)
    more = ("method=none", "export_form=packed", "hardware.threads=1")
    arguments = contract(workspace, tmp_path / "run", *more)
    for before in ("packed-00001-of-*.safetensors", "run/model"):
        killed = sparsemend_dying(
            [*arguments, "resume=auto"], tmp_path, before=before, signal=signal.SIGKILL
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "run" / "model").exists()
    done = sparsemend_here([*arguments, "resume=auto"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "packed-00001-of-00001.safetensors",
    ]
    assert not list((tmp_path / "run").glob(".*.partial"))
    places = [f"from_run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'again'}"]
    again = sparsemend_here([*places, "export=true"], tmp_path)
    assert again.returncode == 0, again.stderr
    results = [result_of(tmp_path / name) for name in ("run", "again")]
    assert results[0]["metrics"]["repaired"] == results[1]["metrics"]["repaired"]
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "model")
    packed_model = load_packed_model(tmp_path / "run" / "model")
    for name, linear in packed_linears(packed_model).items():
        assert torch.equal(linear.weight, dense.get_submodule(name).weight)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "stored packed: a bit per weight, and the kept ones in float32" in card
    streams = sparsemend_here([*places, "hardware.stream=true"], tmp_path)
    assert streams.returncode == 1
    assert "packed weights are read whole; set hardware.stream=false" in streams.stderr
