"""A run of a Mixtral speaks of its linears as the files do, in all that a person reads of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_runs import contract, put_workspace, result_of, sparsemend_here
from support.layouts import LAYOUTS
from transformers import AutoConfig, AutoModelForCausalLM

from sparsemend.checkpoint.supports import read_checkpoint

MODULE = re.compile(r"mlp\.experts|(gate|up|down)_proj")  # no name in Mixtral's files


def put_mixtral(folder: Path) -> Path:
    """A model two of whose four experts no token can choose: each gets the mean of two scores."""
    config = AutoConfig.for_model("mixtral", **LAYOUTS["mixtral"] | {"num_experts_per_tok": 1})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            scores = layer.mlp.gate.weight
            scores[1] = scores[3] = (scores[0] + scores[2]) / 2
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_result_card_warnings_and_check_have_the_names_of_the_files(tmp_path: Path) -> None:
    workspace = put_workspace(tmp_path)
    model = [f"model.path={put_mixtral(tmp_path / 'mixtral')}", "method=none"]
    out, again = tmp_path / "out", tmp_path / "again"
    done = sparsemend_here(contract(workspace, out, *model, "prunable.exclude=[w2]"), tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    in_files = {
        name.removesuffix(".weight")
        for name, tensor in load_file(tmp_path / "mixtral" / "model.safetensors").items()
        if ".layers." in name and tensor.ndim == 2 and not name.endswith("gate.weight")
    }
    sparsity = result_of(out)["sparsity"]
    assert sparsity["per_linear"].keys() | {*sparsity["excluded"]} == in_files
    assert {name.rpartition(".")[2] for name in sparsity["excluded"]} == {"w2"}
    assert sparsity["stays_dense"].keys() == {
        f"model.layers.{block}.block_sparse_moe.experts.{expert}.{linear}"
        for block in range(2)
        for expert in (1, 3)
        for linear in ("w1", "w3")
    }
    assert "8 linears stay dense: model.layers.*.block_sparse_moe.experts.*.w2" in done.stdout
    assert "model.layers.0.block_sparse_moe.experts.1.w1" in done.stdout
    card = (out / "model" / "README.md").read_text()
    assert "but for 8 that were left dense: `model.layers.*.block_sparse_moe.experts.*.w2`." in card
    assert "`model.layers.*.block_sparse_moe.experts.{1,3}.w1`, " in card
    assert not any(MODULE.search(text) for text in (done.stdout, card, str(sparsity)))
    checked = read_checkpoint(out / "model", None, None)
    assert checked.prunable.stays_dense.keys() == {*sparsity["excluded"], *sparsity["stays_dense"]}

    rates = [f"sparsity_schedule.path={out / 'result.json'}", "sparsity_schedule=file"]
    named = [*rates, "prunable.exclude=[mlp.experts.*.down_proj]"]
    other = sparsemend_here(contract(workspace, again, *model, *named), tmp_path)
    assert other.returncode == 0, other.stderr + other.stdout
    assert result_of(again)["sparsity"] == sparsity
    measured = sparsemend_here([f"from_run={out}", f"hydra.run.dir={tmp_path / 'b'}"], tmp_path)
    assert measured.returncode == 0, measured.stderr + measured.stdout
    assert result_of(tmp_path / "b")["sparsity"]["per_linear"] == sparsity["per_linear"]
