"""The command contract, end to end, on folders and files the tests make.

In this process, through the console command's own `main`; what only a process of its own can show
(the command as a shell starts it, W&B's service) is `slow`.
"""

import csv
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from oracles import perplexity_oracle
from safetensors.torch import load_file, save_file
from support.command_runs import (
    SEQLEN,
    contract,
    put_workspace,
    result_of,
    sparsemend_command,
    sparsemend_dying,
    sparsemend_here,
    weights_of,
)
from support.contracts import assert_same_bits
from support.member_runs import TRAINED
from support.wandb_file import read_offline
from transformers import AutoModelForCausalLM

from sparsemend.logger.base import origin
from sparsemend.result.folder import load_result
from sparsemend.result.record import Result
from sparsemend.result.runs import RunRecord
from sparsemend.result.summary import block_rows, metric_rows, summary_of
from sparsemend.run.load import record_protocol
from sparsemend.sparse.mask_file import load_masks, save_masks
from sparsemend.table.page.groups import groups, with_unrepaired
from sparsemend.training import checkpoint_file


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA folder and tokens files."""
    return put_workspace(tmp_path_factory.mktemp("workspace"))


ATP_DSNOT = (
    "sparsity_schedule=atp",
    "sparsity_schedule.common_difference=0.05",
    "method=dsnot",
    "method.max_cycles=50",
    "method.threshold=0.1",
    "method.variance_power=1",
    "method.refine=all",
    "method.same_sign=false",
    "method.mode=clean",
)


@pytest.fixture(scope="module")
def dsnot_run(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the documented command."""
    out = tmp_path_factory.mktemp("dsnot") / "out"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = sparsemend_here(contract(workspace, out, *ATP_DSNOT), elsewhere)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "dense" in done.stdout
    assert "sparsity by block, mean 0.6000" in done.stdout
    assert "repaired" in done.stdout
    assert str(out / "result.json") in done.stdout
    return out


def test_the_result_follows_the_schema_and_the_contract(dsnot_run: Path) -> None:
    result = result_of(dsnot_run)
    assert result["status"] == "finished"
    for state in ("dense", "pruned", "repaired"):
        assert result["metrics"][state]["perplexity/test"] > 1
    for stage in ("load", "prune", "repair", "evaluate", "export"):
        assert result["cost"][stage]["seconds"] >= 0
        assert result["cost"][stage]["peak_bytes"] > 0
    # every row of the walk loses int(inputs * rate): at most one weight in 32 below the target
    assert 0.6 - 1 / 32 <= result["sparsity"]["achieved"] <= 0.6


def test_a_method_that_prunes_by_itself_has_a_one_shot_model_only_where_asked(
    workspace: Path, tmp_path: Path
) -> None:
    results = {}
    for asked in ("false", "true"):
        out = tmp_path / asked
        overrides = (*TRAINED["losa"], f"method.prior_prune={asked}")
        done = sparsemend_here(contract(workspace, out, *overrides), tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        assert ("pruned (Wanda)" in done.stdout) == (asked == "true")
        results[asked] = result_of(out)
    without, both = results["false"], results["true"]
    assert [*without["metrics"]] == ["dense", "repaired"]
    assert [*both["metrics"]] == ["dense", "pruned", "repaired"]
    assert "prune" not in without["cost"]
    assert "pruned" not in without["cost"]["evaluate"]["by_state"]
    assert without["metrics"]["repaired"] == both["metrics"]["repaired"]  # which never read it
    weights, others = weights_of(tmp_path / "false"), weights_of(tmp_path / "true")
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    run = RunRecord(tmp_path / "false", load_result(tmp_path / "false" / "result.json"))
    assert [state for _, state in run.states()] == ["dense", "repaired"]
    assert len(with_unrepaired(groups([run]))) == 1


def test_rates_follow_the_progression(dsnot_run: Path) -> None:
    asked = {v["asked"] for v in result_of(dsnot_run)["sparsity"]["per_linear"].values()}
    assert sorted(asked) == pytest.approx([0.55, 0.6, 0.65])
    by_block = result_of(dsnot_run)["sparsity"]["asked_per_block"]
    assert list(by_block.values()) == pytest.approx([0.55, 0.6, 0.65])


def test_the_export_reloads_without_this_package_with_the_same_zeros(dsnot_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(dsnot_run / "model")
    masks = load_masks(dsnot_run / "model" / "masks.safetensors")
    assert len(masks) == 21
    for name, keep in masks.items():
        weight = model.get_submodule(name).weight
        assert not weight.masked_fill(keep, 0).any()
    zeros = sum(int((model.get_submodule(n).weight == 0).sum()) for n in masks)
    assert zeros == result_of(dsnot_run)["sparsity"]["zeros"]
    assert "sparsity_config" not in (dsnot_run / "model" / "config.json").read_text()


def test_the_exported_model_has_the_repaired_perplexity(dsnot_run: Path, workspace: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(dsnot_run / "model").eval()
    tokens = load_file(workspace / "test.safetensors")["input_ids"][:, :SEQLEN]
    expected = result_of(dsnot_run)["metrics"]["repaired"]["perplexity/test"]
    assert perplexity_oracle.perplexity(model, tokens) == pytest.approx(expected, rel=1e-5)


def test_the_model_card_tells_how_the_model_was_made(dsnot_run: Path) -> None:
    card = (dsnot_run / "model" / "README.md").read_text()
    result = result_of(dsnot_run)
    repaired = result["metrics"]["repaired"]["perplexity/test"]
    for expected in ("DSnoT(", "Wanda(", "Atp(", "method=dsnot", "0.6", f"{repaired:.4f}"):
        assert expected in card
    assert result["protocol"]["data_hash"] in card


def test_repairing_an_exported_checkpoint_keeps_its_support(
    dsnot_run: Path, workspace: Path, tmp_path: Path
) -> None:
    overrides = (
        f"model.path={dsnot_run / 'model'}",
        "pruner=existing",
        "method=masked_lora",
        "method.max_steps=2",
    )
    arguments = [a for a in contract(workspace, tmp_path / "out") if a != "pruner=wanda"]
    done = sparsemend_here([*arguments, *overrides], tmp_path)
    assert done.returncode == 0, done.stderr
    before = load_masks(dsnot_run / "masks.safetensors")
    after = load_masks(tmp_path / "out" / "masks.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (
        result_of(tmp_path / "out")["metrics"]["dense"]
        == result_of(tmp_path / "out")["metrics"]["pruned"]
    )


def test_two_four_with_sparsegpt_exports_two_four(workspace: Path, tmp_path: Path) -> None:
    arguments = [a for a in contract(workspace, tmp_path / "out") if a != "pruner=wanda"]
    overrides = ("pruner=sparsegpt", "pattern=2:4", "sparsity=0.5", "method=none")
    done = sparsemend_here([*arguments, *overrides], tmp_path)
    assert done.returncode == 0, done.stderr
    for keep in load_masks(tmp_path / "out" / "masks.safetensors").values():
        assert torch.all(keep.view(keep.shape[0], -1, 4).sum(dim=2) == 2)


def test_a_sweep_prunes_and_repairs_each_cell(workspace: Path, tmp_path: Path) -> None:
    arguments = [a for a in contract(workspace, tmp_path) if not a.startswith("hydra.run.dir")]
    done = sparsemend_here(
        [
            "-m",
            *[a for a in arguments if a != "export=true"],
            "method=none,dsnot",
            f"hydra.sweep.dir={tmp_path}/sweep",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = [result_of(tmp_path / "sweep" / str(n)) for n in range(2)]
    assert [r["status"] for r in results] == ["finished", "finished"]
    assert results[0]["metrics"]["pruned"] == results[1]["metrics"]["pruned"]


def test_cells_that_differ_in_rounding_are_pruned_apart(workspace: Path, tmp_path: Path) -> None:
    arguments = [a for a in contract(workspace, tmp_path) if not a.startswith("hydra.run.dir")]
    done = sparsemend_here(
        [
            "-m",
            *[a for a in arguments if a != "export=true"],
            "method=none",
            "rounding=pruner,exact_budget",
            f"hydra.sweep.dir={tmp_path}/sweep",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    own, exact = (result_of(tmp_path / "sweep" / str(n))["sparsity"] for n in range(2))
    assert own["achieved"] < 0.6 - 1e-3
    assert exact["zeros"] == round(0.6 * exact["prunable_weights"])


@pytest.mark.slow  # W&B starts a service; test_trackers reads one back from a few numbers
def test_an_offline_wandb_run_equals_the_result(workspace: Path, tmp_path: Path) -> None:
    """Read back from disk: configuration, curves, tables and summary."""
    out = tmp_path / "out"
    options = ("logger=wandb", "logger.wandb.mode=offline", "sparsity_schedule=owl", "export=false")
    training = ("method=masked_lora", "method.max_steps=4", "method.validate_every=2")
    done = sparsemend_here(contract(workspace, out, *options, *training), tmp_path)
    assert done.returncode == 0, done.stderr
    run, result = read_offline(out), result_of(out)
    run.config.pop("_wandb", None)
    assert run.config == {**result["config"], **origin(result)}
    summary = summary_of(result)
    assert {key: run.summary.get(key) for key in summary} == summary
    assert summary["repaired/perplexity/test"] == result["metrics"]["repaired"]["perplexity/test"]
    assert summary["sparsity/block/2"] == result["sparsity"]["per_block"]["model.layers.2"]
    assert len(result["curves"]["validation/loss"]) == 2
    assert {name: run.curve(name) for name in result["curves"]} == result["curves"]
    rows = list(csv.DictReader((out / "training" / "metrics.csv").open()))
    losses = [[int(r["step"]), float(r["train/loss"])] for r in rows if r["train/loss"]]
    assert [step for step, _ in losses] == [0, 1, 2, 3]
    assert run.curve("train/loss") == losses
    assert run.table("sparsity_by_block")[1] == block_rows(result)
    assert run.table("results")[1] == metric_rows(result)[1]
    assert run.exit_code == 0
    assert "wandb:" not in done.stdout + done.stderr


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    def attempt(data_hash: str) -> Any:
        config = OmegaConf.create({"name": "a"})
        data = SimpleNamespace(
            name="d", data_hash=lambda: data_hash, framing=dict, calibration_samples=1
        )
        data.calibrates_on = lambda: "text"
        asked = {"statistics": "exact", "true_sequential": False}
        cfg = OmegaConf.create({"model": {"dtype": "float32"}, **asked})
        result = Result(tmp_path / "result.json", config, resumed=True)
        model = SimpleNamespace(stored_as=lambda: None)
        reader = SimpleNamespace(needs_calibration=True)
        readers = dict.fromkeys(("pruner", "sparsity_schedule", "method"), reader)
        parts = SimpleNamespace(data=data, model=model, **readers)
        return SimpleNamespace(cfg=cfg, parts=parts, result=result, out=tmp_path)

    for data_hash in ("one", "one"):
        job = attempt(data_hash)
        record_protocol(job, torch.zeros(1, 4))
        job.result.write()
        assert job.result.content["protocol"]["tokens"] == 4
    with pytest.raises(ValueError, match="data of this configuration have changed"):
        record_protocol(attempt("two"), torch.zeros(1, 4))


def test_an_interrupted_run_resumes_to_the_bits_of_an_undisturbed_one(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the third checkpoint is written, then the same command again."""
    overrides = ("method=lors", "method.rank=2", "method.max_steps=10", "resume=auto")
    overrides += ("method.checkpoint_every=2", "method.validate_every=5", "hardware.threads=1")
    undisturbed = sparsemend_here(contract(workspace, tmp_path / "one", *overrides), tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr

    arguments = contract(workspace, tmp_path / "two", *overrides)
    saves = []

    def interrupting(path: Path):
        saves.append(path.name)
        if saves.count("last.ckpt") == 3:
            raise KeyboardInterrupt
        return replacing(path)

    replacing = checkpoint_file.replacing
    monkeypatch.setattr(checkpoint_file, "replacing", interrupting)
    assert sparsemend_here(arguments, tmp_path).returncode == 130
    monkeypatch.undo()
    assert result_of(tmp_path / "two")["status"] == "interrupted"
    elsewhere = [f"resume={tmp_path / 'two'}", f"hydra.run.dir={tmp_path / 'three' / '0'}"]
    again = sparsemend_here([*arguments, *elsewhere], tmp_path)
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "three").exists()  # it goes on where it was, its log too
    assert "going on after step 4 of 10" in (tmp_path / "two" / "run.log").read_text()
    resumed = list(csv.DictReader((tmp_path / "two" / "training-2" / "metrics.csv").open()))
    assert int(resumed[0]["step"]) >= 4

    assert_same_bits(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))
    result = result_of(tmp_path / "two")
    assert len(result["earlier_attempts"]) == 1
    assert result["provenance"]["threads"] == 1
    # no finished stage is repeated, and the step is named that training goes on from
    for stage in ("pruned of the earlier attempt", "going on after step 4 of 10"):
        assert stage in again.stdout
    assert again.stdout.count("metrics of the earlier attempt") == 2
    assert not (tmp_path / "two" / "stages").exists()


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own_leaves_the_same(
    dsnot_run: Path, workspace: Path, tmp_path: Path
) -> None:
    arguments = contract(workspace, tmp_path / "out", *ATP_DSNOT)
    done = sparsemend_command([*arguments, "hardware.threads=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = result_of(dsnot_run), result_of(tmp_path / "out")
    assert one["metrics"] == other["metrics"]
    assert one["sparsity"] == other["sparsity"]
    assert_same_bits(weights_of(dsnot_run), weights_of(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_ends_the_process_with_its_code(
    sent: int, code: int, workspace: Path, tmp_path: Path
) -> None:
    """Lightning catches the signals itself, in a process that it owns."""
    overrides = ("method=masked_lora", "method.max_steps=30", "method.checkpoint_every=2")
    stopped = sparsemend_dying(
        contract(workspace, tmp_path / "out", *overrides),
        tmp_path,
        before="checkpoints/last.ckpt",
        count=2,
        signal=sent,
    )
    assert stopped.returncode == code, stopped.stderr
    assert "interrupted; the same command with resume=auto goes on" in stopped.stderr
    result = result_of(tmp_path / "out")
    assert result["status"] == "interrupted"
    assert result["error"]["message"] == "stopped by Ctrl-C or by a signal; resume=auto goes on"


def test_an_open_adapter_is_saved_beside_a_base_that_keeps_its_zeros(
    workspace: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    overrides = ("method=lora", "method.rank=2", "method.max_steps=4", "method.learning_rate=0.1")
    done = sparsemend_here(contract(workspace, tmp_path / "out", *overrides), tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "out")
    assert result["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.02)
    assert result["sparsity"]["effective"] < 0.01
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert result["sparsity"]["zeros"] == sum(
        int((base.get_submodule(n).weight == 0).sum())
        for n in load_masks(tmp_path / "out" / "masks.safetensors")
    )
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    tokens = load_file(workspace / "test.safetensors")["input_ids"][:, :SEQLEN]
    expected = result["metrics"]["repaired"]["perplexity/test"]
    assert expected != result["metrics"]["pruned"]["perplexity/test"]
    assert perplexity_oracle.perplexity(model, tokens) == pytest.approx(expected, rel=1e-5)

    # a finished run measured again has its adapter, to the bit, and saves it again
    again = [f"from_run={tmp_path / 'out'}", f"hydra.run.dir={tmp_path / 'again'}"]
    done = sparsemend_here(again, tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "again")["metrics"] == result["metrics"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = (tmp_path / run / "adapter" / name for run in ("out", "again"))
        if name.endswith("config.json"):
            assert one.exists() == other.exists()
        else:
            assert one.read_bytes() == other.read_bytes()


def test_a_finished_run_is_measured_and_exported_again_without_repairing_it(
    dsnot_run: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in dsnot_run.rglob("*") if p.is_file()}
    arguments = (
        "evaluation=[perplexity,speed]",
        "evaluation.speed.prompt_tokens=8",
        "evaluation.speed.new_tokens=2",
        "evaluation.speed.rounds=1",
        "export=true",
        "export_dtype=bfloat16",
        f"hydra.run.dir={tmp_path / 'again'}",
    )
    done = sparsemend_here([f"from_run={dsnot_run}", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    first, again = result_of(dsnot_run), result_of(tmp_path / "again")
    for state in ("dense", "pruned", "repaired"):
        assert (
            again["metrics"][state]["perplexity/test"]
            == (first["metrics"][state]["perplexity/test"])
        )
    assert again["metrics"]["repaired"]["speed/csr/decode"] > 0
    assert again["sparsity"] == first["sparsity"]
    assert again["cost"]["repair"] == first["cost"]["repair"]
    assert again["repair"] == first["repair"]
    assert again["config"]["method"] == first["config"]["method"]
    assert again["from_run"]["config_hash"] == first["config_hash"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "model")
    assert model.dtype == torch.bfloat16
    card = (tmp_path / "again" / "model" / "README.md").read_text()
    assert "method=dsnot" in card  # the command that made the model
    assert "speed/csr/decode" in card
    assert {p: p.read_bytes() for p in dsnot_run.rglob("*") if p.is_file()} == before


def test_kept_zeros_are_refused_by_a_derived_mask_before_anything_is_measured(
    dsnot_run: Path, workspace: Path, tmp_path: Path
) -> None:
    masks = dict(load_masks(dsnot_run / "masks.safetensors"))
    name, keep = next(iter(masks.items()))
    row, column = (~keep).nonzero()[0].tolist()
    keep[row, column] = True  # where the checkpoint holds a zero
    save_masks(masks, tmp_path / "masks.safetensors")
    overrides = (
        f"model.path={dsnot_run / 'model'}",
        "pruner=existing",
        f"pruner.masks={tmp_path / 'masks.safetensors'}",
        "method=lors",
        "method.rank=2",
        "method.mask=derived",
    )
    arguments = [a for a in contract(workspace, tmp_path / "out") if a != "pruner=wanda"]
    done = sparsemend_here([*arguments, *overrides], tmp_path)
    assert done.returncode == 1
    assert f"support of {name} from its non-zero weights, but 1 kept weights" in done.stderr
    assert "method.mask=stored" in done.stderr
    assert result_of(tmp_path / "out")["metrics"] == {}


def test_a_failed_run_says_why_in_its_result(workspace: Path, tmp_path: Path) -> None:
    overrides = ("method=masked_full", "method.learning_rate=1e30")
    done = sparsemend_here(contract(workspace, tmp_path / "out", *overrides), tmp_path)
    assert done.returncode != 0
    assert "lower method.learning_rate" in done.stderr
    result = result_of(tmp_path / "out")
    assert result["status"] == "failed"
    assert "lower method.learning_rate" in result["error"]["message"]


@pytest.mark.parametrize(
    "method", [("dsnot",), ("reconstruct", "method.windows_per_step=2")], ids=lambda m: m[0]
)
def test_what_reads_dense_weights_is_refused_on_a_pruned_checkpoint(
    workspace: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    arguments = [a for a in contract(workspace, tmp_path / "out") if a != "pruner=wanda"]
    name, *knobs = method
    shutil.copytree(workspace / "llama", tmp_path / "pruned")
    weights = load_file(tmp_path / "pruned" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = 0
    save_file(weights, tmp_path / "pruned" / "model.safetensors", metadata={"format": "pt"})
    lines = ["pruner=existing", f"model.path={tmp_path / 'pruned'}", f"method={name}", *knobs]
    done = sparsemend_here([*arguments, *lines], tmp_path)
    assert done.returncode != 0
    assert "reads the dense weights" in done.stderr


TOY = '''
"""A method of a user's own: doubles the kept weights of the first linear."""
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from sparsemend.sparse.linear import sparse_linears
from sparsemend.method.base import RepairMethod, Workbench


@dataclass(kw_only=True)
class Toy(RepairMethod):
    factor: float

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        name, linear = next(iter(sparse_linears(model)))
        linear.set_effective_(linear.weight * self.factor, linear.keep)
        return {"scaled": name}
'''


def test_adding_a_method_is_one_file_and_one_yaml(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import contracts

    (tmp_path / "toy_method.py").write_text(TOY)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    yaml = tmp_path / "conf" / "method" / "toy.yaml"
    yaml.write_text("_target_: toy_method.Toy\nfactor: 2.0  # times the kept weights\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    searchpath = f"hydra.searchpath=[file://{tmp_path}/conf]"

    method = contracts.method_of("toy", searchpath)
    contracts.check_supports_hold(method, tmp_path)
    contracts.check_supports_hold(method, tmp_path, pattern="2:4")
    contracts.check_same_seed_gives_same_bits(lambda: method, tmp_path)

    arguments = contract(workspace, tmp_path / "out", searchpath, "method=toy", "method.factor=3")
    done = sparsemend_here(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "out")
    assert result["repair"] == {"foldable": True, "scaled": "model.layers.0.self_attn.q_proj"}
    assert result["metrics"]["repaired"] != result["metrics"]["pruned"]
