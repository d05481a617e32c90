"""What a run's hardware sets in its process and in its Trainers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from support.configs import compose
from support.contracts import bench_for, method_of, pruned_model, windows
from support.evaluation_inputs import evaluation_input
from support.process_state import process_state
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.hardware import Hardware
from sparsemend.run.job import build
from sparsemend.training.numerics import CUBLAS, FLASH_ATTENTION


def hardware(*overrides: str) -> Any:
    return build(compose("run", list(overrides)).hardware)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if torch saw a CUDA device; nothing is computed there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, _ in (CUBLAS, FLASH_ATTENTION):
        monkeypatch.delenv(name, raising=False)
    with process_state():
        yield


@pytest.mark.parametrize(
    ("asked", "on"),
    [
        (["hardware=gpu"], True),
        (["hardware=gpu", "hardware.deterministic=false"], False),
        (["hardware=cpu"], False),
        (["hardware=cpu", "hardware.deterministic=true"], True),
    ],
    ids=["gpu", "gpu false", "cpu", "cpu true"],
)
def test_equal_bits_are_asked_of_a_gpu_unless_the_user_says_otherwise(
    gpu: None, asked: list[str], on: bool
) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True
    hardware(*asked).prepare()
    assert torch.are_deterministic_algorithms_enabled() is on
    for name, _ in (CUBLAS, FLASH_ATTENTION):
        assert (name in os.environ) is ("hardware=gpu" in asked and on)
    assert not torch.utils.deterministic.fill_uninitialized_memory  # at a price, for nothing


def test_a_workspace_of_the_users_own_is_left_to_cublas(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUBLAS[0], ":16:8")
    hardware("hardware=gpu").prepare()
    assert os.environ[CUBLAS[0]] == ":16:8"


def test_lightning_does_not_take_a_slurm_job_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own choice there would requeue the job and leave checkpoints that a next fit reads."""
    for name, value in (("SLURM_NTASKS", "1"), ("SLURM_JOB_NAME", "run"), ("SLURM_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    made: Hardware = hardware()
    trainer = made.trainer(tmp_path, logger=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert not isinstance(environment, SLURMEnvironment)
    assert trainer.world_size == 1


class Scaled(Callback):
    """Scales the loss by `start` first; notes each step's new scale, and whether factors moved."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.scales: list[float] = []
        self.moved: list[bool] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.precision_plugin.precision == "16-mixed"
        trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=self.start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        trained = [p for n, p in pl_module.named_parameters() if n.endswith("lora_b")]
        self.moved.append(any(bool(p.any()) for p in trained))


@pytest.mark.parametrize("exponent", slow_but_for([16, 60], [60]))
def test_fp16_scales_its_loss_on_a_cpu_too_and_skips_steps_that_overflow(
    exponent: int, tmp_path: Path
) -> None:
    """Lightning would compute in bf16, and say so to nobody."""
    seen, factory = Scaled(2.0**exponent), hardware().trainer_factory([], tmp_path)

    def make_trainer(*, callbacks: list[Callback], **settings: Any) -> Trainer:
        return factory(callbacks=[*callbacks, seen], **settings)

    bench = dataclasses.replace(bench_for(tmp_path), make_trainer=make_trainer)
    method_of("masked_lora", "method.precision=16-mixed").repair(pruned_model(), bench)
    fits = exponent == 16
    assert seen.moved == 3 * [fits]
    assert seen.scales == [2.0 ** (exponent - (0 if fits else step)) for step in (1, 2, 3)]


def outcome(preset: str, out: Path) -> tuple[list[Tensor], float]:
    """A repaired model's weights and its perplexity with the batches of a preset, on the CPU."""
    batches = hardware(f"hardware={preset}", "hardware.accelerator=cpu")
    model, method = pruned_model(), method_of("masked_lora", "method.windows_per_step=8")
    bench = dataclasses.replace(
        bench_for(out),
        micro_batch=batches.micro_batch,
        activation_checkpointing=batches.activation_checkpointing,
    )
    method.repair(model, bench)
    inputs = evaluation_input(windows(12), batch_size=batches.evaluation_batch)
    measured = build(compose("run").evaluation.perplexity)(model, inputs)
    return list(model.state_dict().values()), measured["perplexity/test"]


@pytest.mark.parametrize("preset", ["gpu", "gpu_24gb"])
def test_a_preset_changes_no_number_but_by_rounding(preset: str, tmp_path: Path) -> None:
    (mine, perplexity), (weights, wanted) = (outcome(p, tmp_path / p) for p in (preset, "cpu"))
    assert perplexity == pytest.approx(wanted, rel=1e-5)
    for weight, same in zip(mine, weights, strict=True):
        assert torch.equal(weight == 0, same == 0)
        # three steps of AdamW, whose first is the gradient over its own size
        assert torch.allclose(weight, same, rtol=1e-4, atol=1e-5)


def test_a_preset_of_equal_batches_changes_no_bit(tmp_path: Path) -> None:
    """It still recomputes activations."""
    (mine, perplexity), (weights, wanted) = (outcome(p, tmp_path / p) for p in ("gpu_80gb", "cpu"))
    assert perplexity == wanted
    assert all(torch.equal(a, b) for a, b in zip(mine, weights, strict=True))
