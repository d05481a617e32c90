"""The library gives what the command gives, to the bit, on models in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.command_runs import SEQLEN, contract, put_workspace, result_of, sparsemend_here
from support.contracts import assert_same_bits
from support.families import random_model
from support.tiers import slow_but_for
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend import api
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.mask_file import load_masks
from sparsemend.training.numerics import numerics_kept

Load = Callable[[], PreTrainedModel]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def load(workspace: Path) -> Load:
    def load() -> PreTrainedModel:
        return api.load("model=local", f"model.path={workspace / 'llama'}", "model.dtype=float32")[
            0
        ]

    return load


def windows_of(workspace: Path) -> Any:
    files = {"calibration": "cal", "train": "train", "test": "test"}
    data = {key: str(workspace / f"{name}.safetensors") for key, name in files.items()}
    return api.read_windows(
        None, "data=tokens", data={**data, "seqlen": SEQLEN, "calibration_samples": 8}
    )


# a dense-reading, a trained, an evolving, a round-wise method, and an adapter that stays
RUNS = {
    "dsnot": ["method=dsnot", "method.max_cycles=5"],
    "masked_lora": [
        "method=masked_lora",
        "method.max_steps=3",
        "pattern='2:4'",
        "sparsity=0.5",
    ],
    "seft owl": ["method=seft", "method.max_steps=30", "sparsity_schedule=owl"],
    "spiel": ["method=spiel", "method.max_steps=30", "method.prune_back=pruner"],
    "losa": [
        *("method=losa", "method.prior_prune=true"),
        *("method.max_steps=10", "method.similarity_samples=6"),
    ],
    "reconstruct": ["method=reconstruct", "method.windows_per_step=2", "method.epochs=1"],
    "lora": ["method=lora", "method.rank=2", "method.max_steps=3"],
}
ROWS = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(0))
PRUNING = ("pattern", "sparsity", "pruner")


@pytest.mark.parametrize("name", slow_but_for(RUNS, ["masked_lora"]))
def test_the_numbers_are_those_of_the_command_to_the_bit(
    name: str, workspace: Path, load: Load, tmp_path: Path
) -> None:
    lines = RUNS[name]
    done = sparsemend_here(contract(workspace, tmp_path / "out", *lines), tmp_path)
    assert done.returncode == 0, done.stderr
    expected = result_of(tmp_path / "out")["metrics"]

    windows, model = windows_of(workspace), load()
    assert api.evaluate(model, windows) == expected["dense"]
    pruned = api.prune(
        model, windows.calibration, *[line for line in lines if line.startswith(PRUNING)]
    )
    assert api.evaluate(model, windows) == expected["pruned"]
    repaired = api.repair(
        model,
        *[line for line in lines if line.startswith("method")],
        pruned=pruned,
        train=windows.train,
        validation=windows.validation,
        calibration=windows.calibration,
        dense=load,
    )
    assert api.evaluate(model, windows) == expected["repaired"]
    folder = api.export(model, tmp_path / "exported", repaired=repaired)
    assert_same_bits(
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "out" / "model" / "model.safetensors"),
    )
    assert (folder / "adapter").exists() == (name == "lora")
    supports = [load_masks(path / "masks.safetensors") for path in (folder, tmp_path / "out")]
    assert_same_bits(*supports)


def test_a_choice_of_linears_is_kept_by_what_follows(load: Load, workspace: Path) -> None:
    windows, model, dense = windows_of(workspace), load(), load()
    pruned = api.prune(model, windows.calibration, include=["self_attn.*"], exclude=["k_proj"])
    names = {name.rpartition(".")[2] for name in pruned.report.per_linear}
    assert names == {"q_proj", "v_proj", "o_proj"}
    assert len(pruned.report.excluded) == 3 * 4
    for again in (
        lambda: api.prune(model, None, include=["mlp.*"], pruner="magnitude"),
        lambda: api.prune(model, None, include=["self_attn.*"], pruner="magnitude"),
        lambda: api.repair(model, pruned=pruned, method="none", prunable={"exclude": []}),
    ):
        with pytest.raises(ValueError, match=r"is pruned|was pruned"):
            again()
    # reads the dense linears by name, and the model was left as it was
    repaired = api.repair(
        model, pruned=pruned, method="dsnot", calibration=windows.calibration, dense=dense
    )
    assert repaired.report.per_linear.keys() == pruned.report.per_linear.keys()
    assert repaired.report.excluded == pruned.report.excluded


def test_a_pruned_model_of_ones_own_is_repaired_on_its_zeros(load: Load, workspace: Path) -> None:
    windows, model = windows_of(workspace), load()
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    plain = random_model("llama")
    plain.load_state_dict(
        {n: t for n, t in model.state_dict().items() if not n.endswith("packed_keep")},
        strict=False,
    )
    before = {n: m.weight != 0 for n, m in plain.named_modules() if hasattr(m, "weight")}
    api.repair(
        plain,
        train=windows.train,
        validation=windows.validation,
        method="masked_lora",
        **{"method.max_steps": 2},
    )
    for name, linear in sparse_linears(plain):
        assert torch.equal(linear.keep, before[name])
    assert api.check(plain).of_prunable >= 0.5


@pytest.mark.slow
def test_a_model_whose_blocks_stay_in_files_is_repaired_to_the_same_bits(
    workspace: Path, tmp_path: Path
) -> None:
    windows, tensors, losses = windows_of(workspace), [], []
    where = ["model=local", f"model.path={workspace / 'llama'}", "model.dtype=float32"]
    for name, stream in (("memory", False), ("files", True)):
        folder = tmp_path / f"{name} of work"
        hardware = {"stream": stream, "states": "file" if stream else "device"}
        model, _ = api.load(*where, folder=folder, hardware=hardware)
        pruned = api.prune(model, windows.calibration, "pruner=wanda", hardware=hardware)
        pruned = api.prune(model, windows.calibration, "sparsity=0.7", hardware=hardware)
        arguments = {"pruned": pruned, "calibration": windows.calibration, "hardware": hardware}
        dense = api.load(*where, hardware=hardware)[0]
        api.repair(model, "method=dsnot", dense=dense, **arguments)
        losses.append(api.evaluate(model, windows, hardware=hardware))
        assert api.check(model).total.zeros > 0
        out = api.export(model, tmp_path / name)
        files = [*out.glob("*.safetensors")]
        tensors.append({key: t for file in files for key, t in load_file(file).items()})
        if stream:  # of the last change alone
            assert len([*folder.glob("blocks/*/*")]) == 3
    assert losses[0] == losses[1]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


@pytest.mark.slow
def test_what_a_model_whose_blocks_stay_in_files_cannot_is_refused(
    workspace: Path, tmp_path: Path
) -> None:
    windows = windows_of(workspace)
    lines = ["model=local", f"model.path={workspace / 'llama'}", "hardware.stream=true"]
    measured, _ = api.load(*lines)
    with pytest.raises(ValueError, match=r"stays as it is; give load\(\.\.\., folder="):
        api.prune(measured, windows.calibration)
    given = {"train": windows.train, "validation": windows.validation}
    with pytest.raises(ValueError, match=r"method=masked_lora works on all blocks.*stream=false"):
        api.repair(measured, "method=masked_lora", **given)
    with pytest.raises(ValueError, match=r"evaluation=speed needs all blocks.*stream=false"):
        api.evaluate(measured, windows, "evaluation=[speed]")
    with pytest.raises(ValueError, match=r"lie in files; write it by sparsemend\.api\.export"):
        measured.save_pretrained(tmp_path / "saved")
    (tmp_path / "one/blocks/prune").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds the blocks of another model; give a new folder"):
        api.load(*lines, folder=tmp_path / "one")


def test_an_export_leaves_the_model_as_it_is(load: Load, tmp_path: Path) -> None:
    model = load()
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    before = {n: (m, m.keep.clone()) for n, m in sparse_linears(model)}
    folder = api.export(model, tmp_path / "deep" / "model")
    after = dict(sparse_linears(model))
    assert all(
        after[n] is m and torch.equal(after[n].keep, keep) for n, (m, keep) in before.items()
    )
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    zeros = sum(int((reloaded.get_submodule(n).weight == 0).sum()) for n in before)
    assert zeros == api.check(model).total.zeros
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_an_adapter_that_is_open_is_not_lost(load: Load, workspace: Path, tmp_path: Path) -> None:
    windows, model = windows_of(workspace), load()
    pruned = api.prune(model, None, pruner="magnitude", sparsity=0.5)
    train = {"train": windows.train, "validation": windows.validation}
    api.repair(model, "method.max_steps=1", pruned=pruned, method="lora", **train)
    for again in (lambda: api.prune(model, None), lambda: api.repair(model, method="dsnot")):
        with pytest.raises(ValueError, match="carries an earlier repair's adapter"):
            again()
    with pytest.raises(ValueError, match="not folded"):
        api.export(model, tmp_path / "model")


def test_a_folder_of_other_things_is_not_replaced(load: Load, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = load()
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    with pytest.raises(ValueError, match="give a new folder"):
        api.export(model, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_model_is_left_in_the_mode_it_was_in(load: Load) -> None:
    model = load().train()
    model.config.use_cache = True
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    assert model.training
    assert model.config.use_cache


@pytest.mark.parametrize("warns", [True, False])
def test_torch_computes_afterwards_as_the_caller_had_chosen(load: Load, warns: bool) -> None:
    model = load()
    with numerics_kept():
        torch.use_deterministic_algorithms(True, warn_only=warns)
        torch.set_float32_matmul_precision("high")
        torch.utils.deterministic.fill_uninitialized_memory = True
        api.prune(model, None, pruner="magnitude")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warns
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_weight_off_its_support_is_named(load: Load) -> None:
    model = load()
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    name, linear = next(sparse_linears(model))
    with torch.no_grad():
        linear.weight.masked_fill_(~linear.keep, 1.0)
    with pytest.raises(ValueError, match=re.escape(name)):
        api.check(model)


@pytest.mark.parametrize("method", ["masked_lora", "losa", "reconstruct"])
def test_a_repair_that_trains_is_refused_under_inference_mode(method: str) -> None:
    model = random_model("llama")
    pruned = api.prune(model, None, pruner="magnitude", sparsity=0.5)
    given = {"train": ROWS, "validation": ROWS, "calibration": ROWS, "dense": random_model("llama")}
    with torch.inference_mode(), pytest.raises(ValueError, match="call it outside of that"):
        api.repair(model, f"method={method}", pruned=pruned, **given)
    assert api.check(model).of_prunable == pruned.report.of_prunable  # nothing was attached


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: api.prune(m, None, sparsity=0.5), "Wanda with Uniform needs calibration"),
        (lambda m: api.prune(m, None, sparsitty=0.5), "sparsity"),
        (lambda m: api.prune(m, None, pruner="wandda"), "wanda"),
        (lambda m: api.repair(m, method="lors"), "Lors trains; give train and validation"),
        (lambda m: api.prune(m, torch.full((2, 8), 96), sparsity=0.5), "vocabulary"),
        (lambda m: api.read_windows(None, "data=tokens"), "tokens per window"),
        (
            lambda m: api.prune(m, torch.zeros(2, 8), sparsity=0.5),
            r"float32 \(2, 8\); give",
        ),
        (lambda m: api.prune(m, [[1, 2]], sparsity=0.5), "integer tensor"),
        (lambda m: api.prune(m, None, statistics="densee"), "statistics=densee"),
        (lambda m: api.prune(m, None, pattern="2:4", sparsity=0.6), "pattern 2:4"),
        (lambda m: api.prune(m, None, debug="fast"), "debug is for runs"),
        (lambda m: api.prune(m, None, "hardware=ddp", pruner="magnitude"), "several devices"),
        (lambda m: api.repair(m, method="none", pattern="2:4"), "pattern 2:4 does not hold"),
        (
            lambda m: api.repair(
                m, "method=spiel", "method.prune_back=pruner", train=ROWS, validation=ROWS
            ),
            "prune_back=pruner prunes as the run did, but nothing was pruned here",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    call: Callable[[PreTrainedModel], Any], words: str
) -> None:
    model = random_model("llama")
    if any(reason in words for reason in ("trains", "does not hold", "prune_back")):
        api.prune(model, None, pruner="magnitude", sparsity=0.5)
    with pytest.raises(ValueError, match=words) as error:
        call(model)
    assert "\n" not in str(error.value)
