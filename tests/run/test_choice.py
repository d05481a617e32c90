"""`prunable` through whole runs: what stays dense stays so in every stage that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support.command_runs import contract, put_workspace, result_of, sparsemend_here, weights_of
from support.configs import compose
from support.families import random_model
from transformers import PreTrainedModel

from sparsemend.blocks.choice import dense_linears
from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.walk import Calibration
from sparsemend.checkpoint.supports import read_checkpoint
from sparsemend.config.prunable import PrunableNames
from sparsemend.model import ModelSource
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.choice import ChosenLinears
from sparsemend.run.debug import FirstBlocks
from sparsemend.run.keys import Keys
from sparsemend.sparsity_schedule.uniform import Uniform

CHOICE = "prunable.exclude=[o_proj,layers.0.mlp.*]"


class Llama(ModelSource):
    name, context_length = "m", 16

    def load(self, *, seed: int) -> PreTrainedModel:
        return random_model("llama")

    def tokenizer(self) -> None:
        return None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def run(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an export of which a choice left linears dense."""
    out = tmp_path_factory.mktemp("chosen") / "out"
    done = sparsemend_here(contract(workspace, out, CHOICE, "method=none"), out.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "6 linears stay dense: model.layers.*.self_attn.o_proj," in done.stdout
    return out


def test_what_stays_dense_keeps_its_bits_and_counts_nowhere(run: Path, workspace: Path) -> None:
    sparsity, weights = result_of(run)["sparsity"], weights_of(run)
    dense = load_file(workspace / "llama" / "model.safetensors")
    excluded = sparsity["excluded"]
    assert len(excluded) == 6
    assert not set(excluded) & set(sparsity["per_linear"])
    assert len(sparsity["per_linear"]) == 15
    for name in excluded:
        assert torch.equal(weights[f"{name}.weight"], dense[f"{name}.weight"])
    sizes = [weights[f"{name}.weight"].numel() for name in sparsity["per_linear"]]
    assert sparsity["prunable_weights"] == sum(sizes)
    assert sparsity["achieved"] == pytest.approx(0.6, abs=1 / 32)


def test_card_and_check_say_what_was_left_dense(run: Path) -> None:
    card = (run / "model" / "README.md").read_text()
    assert "but for 6 that were left dense: `model.layers.*.self_attn.o_proj`" in card
    checked, sparsity = read_checkpoint(run / "model", None, None), result_of(run)["sparsity"]
    assert set(checked.excluded) == set(sparsity["excluded"])
    assert (checked.zeros, checked.weights) == (sparsity["zeros"], sparsity["prunable_weights"])
    assert checked.failures(None) == []


@pytest.mark.slow
def test_a_run_measured_again_has_the_choice_of_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    done = sparsemend_here([f"from_run={run}", f"hydra.run.dir={out}"], tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    again, before = result_of(out), result_of(run)
    assert again["sparsity"]["excluded"] == before["sparsity"]["excluded"]
    assert again["metrics"]["repaired"] == before["metrics"]["repaired"]
    changed = sparsemend_here([f"from_run={run}", "prunable.exclude=[]"], tmp_path)
    assert changed.returncode == 1
    assert "prunable.exclude=[] is not for a run that is measured again" in changed.stderr


@pytest.mark.slow
def test_a_pruned_checkpoint_is_taken_with_the_choice_of_its_masks(
    run: Path, workspace: Path, tmp_path: Path
) -> None:
    lines = [f"model.path={run / 'model'}", "pruner=existing", "method=none"]
    other = sparsemend_here(
        contract(workspace, tmp_path / "a", *lines, "prunable.exclude=[q_proj]"), tmp_path
    )
    assert other.returncode == 1
    assert "prunable.include and exclude as in the run that wrote them" in other.stderr
    before = result_of(run)["sparsity"]
    for number, choice in enumerate(([CHOICE], [])):
        out = tmp_path / str(number)
        done = sparsemend_here(contract(workspace, out, *lines, *choice), tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        taken = result_of(out)["sparsity"]
        assert taken["zeros"] == before["zeros"]
        # without the choice they are prunable linears that stayed dense
        assert taken["excluded"] == (before["excluded"] if choice else [])
        assert (taken["prunable_weights"] == before["prunable_weights"]) == bool(choice)


def test_every_load_makes_the_same_choice_and_a_cut_model_keeps_it() -> None:
    names = PrunableNames(include=None, exclude=("down_proj", "layers.2.*"))
    source = ChosenLinears(Llama(), names)
    first, second = source.load(seed=0), source.load(seed=0)
    assert len(dense_linears(first)) == 2 + 7
    assert [*dense_linears(first)] == [*dense_linears(second)]
    cut = FirstBlocks(source, 2).load(seed=0)
    assert len(find_blocks(cut)[1]) == 2
    assert len(dense_linears(cut)) == 2


def test_a_choice_is_in_the_keys_of_what_is_pruned_but_not_in_those_of_the_windows() -> None:
    keys = []
    for exclude in ("[]", "[o_proj]"):
        cfg = compose("run", [f"prunable.exclude={exclude}"])
        keys.append(Keys(cfg, torch.device("cpu"), dense="bits"))
    every, some = keys
    calibration, wanda = Calibration(()), Wanda(variant=False)
    assert every.model() != some.model()
    assert every.pruning(calibration, wanda, Uniform()) != some.pruning(
        calibration, wanda, Uniform()
    )
    assert every._source() == some._source()
    assert OmegaConf.to_container(every.cfg.data) == OmegaConf.to_container(some.cfg.data)
