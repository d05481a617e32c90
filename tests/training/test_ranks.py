"""Two processes on the CPU train as one does with twice the batch, and fail together."""

import copy
import csv
import dataclasses
import importlib.util
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file, save_file
from support import contracts
from support.command_runs import SCHEMA, contract, python, result_of, sparsemend_command
from support.contracts import bench_for, bits, method_of, pruned_model
from support.families import random_model
from torch import Tensor, distributed, nn

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.hardware import DataParallel
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.mask_file import load_masks
from sparsemend.training import ranks
from sparsemend.training.checkpoint_file import CheckpointFile
from sparsemend.training.collectives import digest
from sparsemend.training.without_values import without_values

TWO = DataParallel(
    accelerator="cpu",
    devices=2,
    offload=False,
    stream=False,
    states="device",
    threads=1,
    micro_batch=None,
    activation_checkpointing=False,
    evaluation_batch=8,
    evaluation_states=10**9,
    deterministic="auto",
)


def parallel(out: Path) -> Workbench:
    """A workbench whose Trainer starts a second process."""
    bench = bench_for(out)
    make = TWO.trainer_factory([CSVLogger(out, name="", version="training")], out)
    object.__setattr__(bench, "make_trainer", make)
    return bench


class OnRank(Callback):
    """Does `act` to the model of rank `rank` before optimizer step `step` (0-based)."""

    def __init__(self, rank: int, step: int, act: Callable[[nn.Module], None]) -> None:
        self.rank, self.step, self.act = rank, step, act

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            self.act(pl_module)


def die(model: nn.Module) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def poison(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = torch.nan


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-3)  # off the support: undone


class Dump(Callback):
    """Each rank writes what it has at the end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.out / f"rank{trainer.global_rank}.pt")


def sgd(name: str, *extra: Callback | str) -> TrainedRepair:
    """A method that takes three steps of plain SGD, of four windows, large enough to matter.

    extra: callbacks it brings, and overrides.
    """
    knobs = [knob for knob in extra if isinstance(knob, str)]
    method = method_of(name, "method.optimizer=sgd", "method.gradient_clip=0", *knobs)
    assert isinstance(method, TrainedRepair)
    method.learning_rate, method.windows_per_step = 0.5, 4
    brought = [callback for callback in extra if isinstance(callback, Callback)]
    if hasattr(method, "init_batch_size"):
        method.init_batch_size = 4  # the start must be the same one
    method.callbacks = Brings([*method.callbacks(), *brought])  # type: ignore[method-assign]
    return method


class Brings:
    """`callbacks()` of a method, in a form that can be sent to another process."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.given = callbacks

    def __call__(self) -> list[Callback]:
        return self.given


def last(out: Path) -> dict[str, Tensor]:
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)
    return saved["state_dict"]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def assert_close(two: dict[str, Tensor], one: dict[str, Tensor]) -> None:
    """Supports equal; trained tensors apart by the order of fp32 sums, 1e-5 of their norm."""
    assert two.keys() == one.keys()
    for name, value in one.items():
        if value.is_floating_point():
            assert distance(two[name], value) < 1e-5, name
        else:
            assert torch.equal(two[name], value), name


def fit_together(out: Path, method: TrainedRepair, **settings: Any) -> dict[str, Any]:
    """The report of two processes; afterwards neither process nor group is left."""
    try:
        bench = dataclasses.replace(parallel(out), **settings)
        return method.repair(pruned_model(), bench)
    finally:
        assert not multiprocessing.active_children()
        assert not torch.distributed.is_initialized()


def fit_alone(out: Path, method: TrainedRepair) -> dict[str, Any]:
    return method.repair(pruned_model(), bench_for(out))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """masked_full by two processes, each with two windows of a step."""
    out = tmp_path_factory.mktemp("together")
    report = fit_together(out, sgd("masked_full", Dump(out)))
    assert report["windows_per_step"] == 4
    return out


@pytest.mark.slow
def test_masked_full_with_two_processes_is_one_with_twice_the_batch(
    together: Path, tmp_path: Path
) -> None:
    report = fit_alone(tmp_path, sgd("masked_full"))
    assert report["windows_per_step"] == 4
    assert_close(last(together), last(tmp_path))
    start = pruned_model().state_dict()
    name, value = next(iter(last(tmp_path).items()))
    assert distance(value, start[name.removeprefix("model.")]) > 1e-3  # there was something to see


@pytest.mark.slow
def test_lors_with_two_processes_is_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Its start, a gradient of rank 0 alone, arrives at the other rank."""
    for part, fit in (("together", fit_together), ("alone", fit_alone)):
        fit(tmp_path / part, sgd("lors"))
    assert_close(last(tmp_path / "together"), last(tmp_path / "alone"))


def evolving(*extra: Callback) -> TrainedRepair:
    """seft by SGD: a round after step 2, of gradients of both ranks."""
    method = sgd("seft")
    method.max_steps, method.update_interval, method.accumulation_steps = 5, 4, 2
    method.__post_init__()
    method.callbacks = Brings([*type(method).callbacks(method), *extra])  # type: ignore[method-assign]
    return method


@pytest.mark.slow
def test_seft_moves_on_two_processes_as_on_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Statistics are averaged, so the same positions leave and enter, the same weights go."""
    dump = Dump(tmp_path)
    reports = {
        "together": fit_together(tmp_path / "together", evolving(dump)),
        "alone": fit_alone(tmp_path / "alone", evolving()),
    }
    assert sum(reports["alone"]["evolution"]["rounds"][0]["reactivated"]) > 0
    assert reports["together"]["evolution"] == reports["alone"]["evolution"]
    assert_close(last(tmp_path / "together"), last(tmp_path / "alone"))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    contracts.assert_same_bits(first, second)


@pytest.mark.slow
def test_every_labelled_token_weighs_the_same_on_whichever_rank(tmp_path: Path) -> None:
    tokens = contracts.windows(12, seed=8)
    labels = tokens.clone()
    for row in range(12):
        labels[row, : row + 2] = UNLABELLED
    reports = {}
    for part, make_bench in (("together", parallel), ("alone", bench_for)):
        bench = make_bench(tmp_path / part)
        for split in ("train", "validation"):
            object.__setattr__(bench, split, Examples(tokens, labels))
        reports[part] = sgd("masked_full").repair(pruned_model(), bench)
    assert_close(last(tmp_path / "together"), last(tmp_path / "alone"))
    expected = pytest.approx(reports["alone"]["validation/loss"], rel=1e-6)
    assert reports["together"]["validation/loss"] == expected


@pytest.mark.slow
def test_every_rank_learns_from_a_dense_model_of_its_own(tmp_path: Path) -> None:
    """Distilled, two processes still take the steps of one with twice the batch."""
    knobs = ("weight=0.5", "hidden_weight=1")
    reports = {}
    for label, bench in (
        ("one", bench_for(tmp_path / "one")),
        ("two", parallel(tmp_path / "two")),
    ):
        method = sgd("masked_full", *(f"method.distill.{k}" for k in knobs))
        object.__setattr__(bench, "load_dense", partial(random_model, "llama"))
        reports[label] = method.repair(pruned_model(), bench)
    assert_close(last(tmp_path / "two"), last(tmp_path / "one"))
    assert reports["two"]["teacher"] == reports["one"]["teacher"]


@pytest.mark.slow
def test_every_parameter_and_buffer_is_the_same_on_both_ranks(together: Path) -> None:
    first, second = (torch.load(together / f"rank{rank}.pt") for rank in (0, 1))
    contracts.assert_same_bits(first, second)


@pytest.mark.slow
def test_ranks_that_start_afresh_as_on_gpus_train_alike(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "start_context", lambda team: multiprocessing.get_context("spawn"))
    fit_together(tmp_path, sgd("masked_full"))
    contracts.assert_same_bits(last(tmp_path), last(together))


@pytest.fixture
def rank_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards this process is the rank again that it was, which alone may log."""
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)


@pytest.mark.usefixtures("rank_kept")
def test_both_ranks_scale_an_fp16_loss_on_a_cpu(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"callbacks": [], "precision": "16-mixed"}
    team = ranks.Team(accelerator="cpu", world=2, threads=1, deterministic=False, out=tmp_path)
    leads = TWO.trainer(tmp_path, logger=False, **settings)
    for trainer in (leads, ranks.following(team, 1)(**settings)):
        plugin: Any = trainer.precision_plugin
        assert (plugin.precision, plugin.scaler is None) == ("16-mixed", False)


@pytest.mark.usefixtures("rank_kept")
def test_every_rank_has_gradients_once_and_writes_checkpoints_in_place(tmp_path: Path) -> None:
    team = ranks.Team(accelerator="cpu", world=2, threads=1, deterministic=False, out=tmp_path)
    trainers = [
        TWO.trainer(tmp_path, logger=False, callbacks=[]),
        ranks.following(team, 1)(callbacks=[]),
    ]
    for rank, trainer in enumerate(trainers):
        strategy: Any = trainer.strategy
        assert strategy._ddp_kwargs == {
            "broadcast_buffers": False,
            "gradient_as_bucket_view": True,
        }
        assert isinstance(strategy.checkpoint_io, CheckpointFile)
        assert trainer.global_rank == rank
    alone = dataclasses.replace(TWO, devices=1).trainer(tmp_path, logger=False)
    assert isinstance(alone.strategy.checkpoint_io, CheckpointFile)


def test_a_rank_is_waited_for_while_a_large_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(distributed, "init_process_group", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    team = ranks.Team(accelerator="cpu", world=2, threads=1, deterministic=False, out=tmp_path)
    with ranks.join_group(team, 1, distributed.HashStore()):
        assert asked["timeout"] > timedelta(hours=1)
        assert (asked["rank"], asked["world_size"]) == (1, 2)


def refuse_unless_deterministic(model: nn.Module) -> None:
    if not torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("this rank is not deterministic")


@pytest.mark.slow
def test_every_rank_computes_as_deterministically_as_the_first(tmp_path: Path) -> None:
    hardware = dataclasses.replace(TWO, deterministic=True)
    bench = bench_for(tmp_path)
    object.__setattr__(bench, "make_trainer", hardware.trainer_factory([], tmp_path))
    method = sgd("masked_full", OnRank(1, 1, refuse_unless_deterministic))
    assert method.repair(pruned_model(), bench)["steps"] == contracts.STEPS


def test_ranks_on_gpus_are_not_forked_off_a_process_that_may_use_cuda(tmp_path: Path) -> None:
    methods = {}
    for accelerator in ("cpu", "gpu"):
        team = ranks.Team(
            accelerator=accelerator, world=2, threads=1, deterministic=False, out=tmp_path
        )
        methods[accelerator] = ranks.start_context(team).get_start_method()
    assert methods == {"cpu": "forkserver", "gpu": "spawn"}


# stands before the imports of a process: CUDA looks present, and whoever starts it is noted
NOTING_CUDA = """
import importlib, sys, torch

def started():
    raise SystemExit("CUDA would be initialised")

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda._lazy_init = started
torch.version.cuda = "12.8"
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_what_a_rank_imports_initialises_no_cuda() -> None:
    """With peft and bitsandbytes, of the extra `dev`, installed: the latter asks its device."""
    imported = ("sparsemend.training.module", "transformers.models.llama.modeling_llama")
    assert python(["-c", NOTING_CUDA, *imported], Path.cwd()).returncode == 0
    if importlib.util.find_spec("bitsandbytes"):
        asks = python(["-c", NOTING_CUDA, "bitsandbytes"], Path.cwd())
        assert "CUDA would be initialised" in asks.stderr  # so that the test can fail


@pytest.mark.slow
def test_ranks_that_drift_apart_are_found(tmp_path: Path) -> None:
    method = sgd("masked_full", OnRank(1, 2, nudge))
    first = r"model\.model\.layers\.0\.self_attn\.q_proj\.weight"
    with pytest.raises(RuntimeError, match=rf"^{first} differs between rank 0 and 1 other"):
        fit_together(tmp_path, method)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(tmp_path: Path) -> None:
    method = sgd("masked_full", OnRank(1, 1, poison))
    with pytest.raises(FloatingPointError, match="loss is nan at step 2 of 3"):
        fit_together(tmp_path, method)


@pytest.mark.slow
def test_a_lost_rank_ends_the_run_which_resumes_to_the_same_bits(
    together: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="rank 1 failed: ended without a word"):
        fit_together(tmp_path, sgd("masked_full", OnRank(1, 2, die)))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=False)["global_step"] == 2
    assert [path.name for path in sorted(checkpoint.parent.iterdir())] == ["last.ckpt"]
    bench = parallel(tmp_path)
    object.__setattr__(bench, "resume_from", checkpoint)
    sgd("masked_full").repair(pruned_model(), bench)
    contracts.assert_same_bits(last(tmp_path), last(together))


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real command, two optimizers in a sweep: `two` processes, and `one` with their batch."""
    folder = tmp_path_factory.mktemp("sweeps")
    random_model("llama").save_pretrained(folder / "llama")
    for seed, (name, rows) in enumerate((("cal", 8), ("train", 24), ("test", 6))):
        tokens = contracts.windows(rows, seed=seed).repeat(1, 2)
        save_file({"input_ids": tokens}, folder / f"{name}.safetensors")
    hardware = {"two": ("hardware=ddp",), "one": ()}
    for part, chosen in hardware.items():
        arguments = [
            *(a for a in contract(folder, folder) if not a.startswith("hydra.run.dir")),
            *chosen,
            "method.windows_per_step=4",
            "hardware.threads=1",
            "method.optimizer=adamw,sgd",
            "method.max_steps=6",
            "method.validate_every=3",
            f"hydra.sweep.dir={folder / part}",
        ]
        done = sparsemend_command(["-m", *arguments], folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("result: ") == 2
        assert done.stdout.count("repaired (") == 2
    return folder


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_what_a_run_of_one_leaves(sweeps: Path) -> None:
    for job in ("0", "1"):
        result = result_of(sweeps / "two" / job)
        jsonschema.validate(result, SCHEMA)
        assert result["status"] == "finished"
        assert result["repair"]["windows_per_step"] == 4
        names = [
            sorted(
                str(p.relative_to(sweeps / part / job)) for p in (sweeps / part / job).rglob("*")
            )
            for part in ("two", "one")
        ]
        assert names[0] == names[1]
        log = (sweeps / "two" / job / "run.log").read_text()
        assert log.count("step 6/6") == log.count("dense ") == 1
    assert len(list((sweeps / "two").rglob("result.json"))) == 2


@pytest.mark.slow
def test_supports_are_exact_and_equal_to_those_of_one_process(sweeps: Path) -> None:
    for job in ("0", "1"):
        two, one = (
            load_masks(sweeps / part / job / "masks.safetensors") for part in ("two", "one")
        )
        contracts.assert_same_bits(two, one)
        weights = load_file(sweeps / "two" / job / "model" / "model.safetensors")
        for name, keep in two.items():
            assert not weights[f"{name}.weight"].masked_fill(keep, 0).any()


@pytest.mark.slow
def test_adamw_losses_of_two_processes_are_those_of_one(sweeps: Path) -> None:
    two, one = (losses(sweeps / part / "0") for part in ("two", "one"))
    assert len(two["train/loss"]) == 6
    assert len(two["validation/loss"]) == 2
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=1e-4), name


@pytest.mark.slow
def test_sgd_weights_of_two_processes_are_those_of_one(sweeps: Path) -> None:
    two, one = (
        load_file(sweeps / part / "1" / "model" / "model.safetensors") for part in ("two", "one")
    )
    assert_close(two, one)


def losses(out: Path) -> dict[str, list[float]]:
    with (out / "training" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name]) for row in rows if row[name]]
        for name in ("train/loss", "validation/loss")
    }


@pytest.mark.slow
def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    model = pruned_model()
    model.register_forward_hook(lambda module, given, output: None)
    with pytest.raises(TypeError, match="cannot be sent to other processes"):
        sgd("masked_full").repair(model, parallel(tmp_path))


@pytest.mark.slow
def test_activation_checkpointing_reaches_every_rank(together: Path, tmp_path: Path) -> None:
    fit_together(tmp_path, sgd("masked_full"), activation_checkpointing=True)
    contracts.assert_same_bits(last(tmp_path), last(together))


def test_more_gpus_than_there_are_is_refused() -> None:
    hardware = dataclasses.replace(TWO, accelerator="gpu", devices=torch.cuda.device_count() + 2)
    with pytest.raises(ValueError, match="but torch sees"):
        hardware.prepare()


def test_what_is_sent_keeps_structure_and_ties_but_no_values() -> None:
    model = random_model("llama", tie_word_embeddings=True)
    model.free = torch.arange(3)  # neither parameter nor buffer
    copied = pickle.loads(without_values(model))
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert torch.equal(copied.free, model.free)
    assert bits(copied).keys() == bits(model).keys()
    for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
        assert not tensor.any(), name
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert len(without_values(model)) < weights / 2


def test_a_digest_sees_the_last_bit() -> None:
    one = torch.ones(5, 3, dtype=torch.bfloat16)
    other = copy.deepcopy(one)
    assert digest(one) == digest(other)
    other.view(torch.int16)[4, 2] ^= 1
    assert digest(one) != digest(other)
