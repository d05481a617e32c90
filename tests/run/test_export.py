import os
import stat
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, random_model
from support.tiers import slow_but_for
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.model import PretrainedModel
from sparsemend.prune import prune
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.adopt import adopt
from sparsemend.run.debug import FirstBlocks
from sparsemend.run.export import cast_, export, to_dense_
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.mask_file import load_masks, save_masks
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

UNSTRUCTURED = Pattern.parse("unstructured")


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, ["llama", "opt", "gemma2"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reloaded_export_gives_the_same_logits_and_zeros(
    family: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path
) -> None:
    random_model(family).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype).eval()
    allocation = Uniform().allocate(model, Calibration(()), 0.5, UNSTRUCTURED)
    prune(model, Calibration(tokens.split(2)), Wanda(variant=False), allocation, UNSTRUCTURED)
    masks = {name: linear.keep for name, linear in sparse_linears(model)}
    save_masks(masks, tmp_path / "masks.safetensors")
    with torch.no_grad():
        before = model(input_ids=tokens, use_cache=False).logits
    export(
        to_dense_(model),
        None,
        tmp_path / "model",
        masks=tmp_path / "masks.safetensors",
        card="card",
    )
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert reloaded.dtype == dtype
    with torch.no_grad():
        after = reloaded(input_ids=tokens, use_cache=False).logits
    assert torch.equal(before, after)
    for name, keep in load_masks(tmp_path / "model" / "masks.safetensors").items():
        assert torch.equal(reloaded.get_submodule(name).weight == 0, ~keep)
    assert adopt(reloaded, load_masks(tmp_path / "model" / "masks.safetensors"))


def test_the_settings_of_a_processor_go_along_with_an_export(tmp_path: Path) -> None:
    model = random_model("llama")
    model.save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "preprocessor_config.json").write_text('{"size": 28}')
    source = PretrainedModel(
        name="local",
        path=str(tmp_path / "dense"),
        revision=None,
        dtype="float32",
        context_length=8,
        attention=None,
        trust_remote_code=False,
    )
    settings = {"masks": tmp_path / "none", "card": None}
    export(
        model, None, tmp_path / "out", **settings, companions=FirstBlocks(source, 1).companions()
    )
    copied = tmp_path / "out" / "preprocessor_config.json"
    assert copied.read_text() == '{"size": 28}'


def test_an_export_that_fails_leaves_nothing_in_its_place(tmp_path: Path) -> None:
    model = to_dense_(random_model("llama"))

    def fail(*arguments: object, **settings: object) -> None:
        raise OSError("disk full")

    model.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        export(model, None, tmp_path / "model", masks=tmp_path / "none", card="")
    assert not (tmp_path / "model").exists()


def test_a_support_of_another_checkpoint_is_refused() -> None:
    model = random_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    supports = {
        n: torch.ones_like(m.weight, dtype=torch.bool)
        for n, m in (
            (n, model.get_submodule(n))
            for n in Uniform().allocate(model, Calibration(()), 0.5, UNSTRUCTURED)
        )
    }
    supports[name][0, 0] = False
    with pytest.raises(ValueError, match=f"{name}: the support in the masks file"):
        adopt(model, supports)


def test_weights_too_large_for_the_exports_dtype_are_named() -> None:
    model = random_model("llama")
    cast_(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    name, linear = next(iter(prunable_linears(model).items()))
    with torch.no_grad():
        linear.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=rf"float16 cannot hold {name}\.weight, .* 99840"):
        cast_(model, torch.float16)


def test_what_an_export_writes_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    masks = tmp_path / "masks.safetensors"
    before = os.umask(0o027)
    try:
        save_masks({"a": torch.ones(2, 8, dtype=torch.bool)}, masks)
        export(to_dense_(random_model("llama")), None, tmp_path / "model", masks=masks, card="card")
    finally:
        os.umask(before)
    files = [masks, *(tmp_path / "model").iterdir()]
    assert {path.name for path in files} >= {"model.safetensors", "masks.safetensors", "README.md"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_the_masks_of_run_and_export_are_one_file_until_either_is_written_again(
    tmp_path: Path,
) -> None:
    run, beside = tmp_path / "masks.safetensors", tmp_path / "model" / "masks.safetensors"
    save_masks({"a": torch.ones(2, 8, dtype=torch.bool)}, run)
    export(to_dense_(random_model("llama")), None, tmp_path / "model", masks=run, card="card")
    assert run.samefile(beside)
    save_masks({"a": torch.zeros(2, 8, dtype=torch.bool)}, run)
    assert load_masks(beside)["a"].all()
    assert not load_masks(run)["a"].any()
