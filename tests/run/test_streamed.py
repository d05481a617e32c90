"""A run whose blocks stay in files has the numbers and the bits of one in memory."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support.command_runs import (
    contract,
    put_workspace,
    result_of,
    sparsemend_dying,
    sparsemend_here,
)
from support.streamed import source
from transformers import PreTrainedModel

from sparsemend.blocks.residency import residency_of, visit_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.errors import CannotStream
from sparsemend.pruner.wanda import Wanda
from sparsemend.run import streamed
from sparsemend.run.prune import PruningRules
from sparsemend.run.streamed import open_if_streamed
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

STREAMED = ("method=none", "hardware.stream=true")


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    """Exported weights and masks of a run, in however many files."""
    files = [out / "masks.safetensors", *(out / "model").glob("model*.safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_run(one: Path, other: Path) -> None:
    results = [result_of(folder) for folder in (one, other)]
    for key in ("metrics", "sparsity", "protocol", "repair"):
        assert results[0][key] == results[1][key], key
    tensors, others = tensors_of(one), tensors_of(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def run(folder: Path, workspace: Path, out: str, *overrides: str) -> Path:
    return finish(contract(workspace, folder / out, *overrides), folder, out)


def finish(arguments: list[str], folder: Path, out: str) -> Path:
    done = sparsemend_here(arguments, folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / out


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("sparsity_schedule=owl", "hardware.states=file"),
        ("pruner=sparsegpt", "pattern=2:4", "sparsity=0.5", "export_dtype=bfloat16"),
        ("pruner=magnitude", "rounding=exact_budget", "statistics=dense"),
    ],
)
def test_a_streamed_run_is_the_run_in_memory(
    overrides: tuple[str, ...], workspace: Path, tmp_path: Path
) -> None:
    streams = run(tmp_path, workspace, "files", *STREAMED, *overrides)
    memory = run(tmp_path, workspace, "memory", "method=none", *overrides)
    assert_same_run(streams, memory)
    assert {path.name for path in streams.iterdir()} == {path.name for path in memory.iterdir()}


@pytest.mark.slow
def test_a_streamed_run_is_measured_again_and_taken_over_by_block(
    workspace: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, workspace, "first", *STREAMED)
    places = [f"from_run={first}", f"hydra.run.dir={tmp_path / 'again'}", "export=true"]
    again = finish([*places, "hardware.stream=true"], tmp_path, "again")
    assert result_of(again)["metrics"]["repaired"] == result_of(first)["metrics"]["repaired"]
    assert all(torch.equal(t, tensors_of(again)[name]) for name, t in tensors_of(first).items())
    existing = [f"model.path={first / 'model'}", "pruner=existing"]
    adopted = run(tmp_path, workspace, "adopted", *STREAMED, *existing)
    assert_same_run(adopted, run(tmp_path, workspace, "memory", "method=none", *existing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "count"),
    [("blocks/prune/00001.safetensors", 1), ("stages/metrics/*", 2), ("run/masks.safetensors", 1)],
)
def test_a_streamed_run_that_was_killed_goes_on_with_its_blocks(
    before: str, count: int, workspace: Path, tmp_path: Path
) -> None:
    overrides = (*STREAMED, "hardware.threads=1", "hardware.states=file", "sparsity_schedule=owl")
    whole = run(tmp_path, workspace, "whole", *overrides)
    arguments = contract(workspace, tmp_path / "run", *overrides)
    killed = sparsemend_dying(
        arguments, tmp_path, before=before, count=count, signal=signal.SIGKILL
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = sorted((tmp_path / "run/blocks/prune").glob("[!.]*"))
    done = sparsemend_here([*arguments, "resume=auto"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"prune: {len(kept)} of 3 blocks of the earlier attempt" in done.stdout + done.stderr
    assert_same_run(whole, tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"blocks", "hidden_states", "stages"}


class Dying(Wanda):
    """Wanda that dies in the second block, each of which has 7 linears."""

    left = 10

    def score(self, weight: torch.Tensor, statistic: Any) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().score(weight, statistic)


def test_statistics_of_the_dense_model_are_of_it_also_after_a_kill(
    workspace: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    def prune(model: PreTrainedModel, pruner: Wanda) -> dict[str, torch.Tensor]:
        rules = PruningRules(
            pruner=pruner,
            schedule=Uniform(),
            sparsity=0.5,
            pattern=Pattern(),
            rounding="pruner",
            statistics="dense",
            true_sequential=False,
        )
        begin = partial(residency_of(model).begin, "prune", "one")
        rules(model, Calibration((tokens[:2],)), beginning=begin)
        return {name: linear.weight.clone() for name, linear in visit_linears(model)}

    dense = source(workspace / "llama")
    whole = prune(dense.load(seed=0), Wanda(variant=False))
    with pytest.raises(KeyboardInterrupt):
        prune(dense.open_streamed(folder=tmp_path), Dying(variant=False))
    assert (tmp_path / "prune/00000.safetensors").exists()
    again = prune(dense.open_streamed(folder=tmp_path), Wanda(variant=False))
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())


def opened(
    asked: str, *, weights: int, available: int | None, fails: bool, monkeypatch: Any
) -> Any:
    def open_streamed(folder: Path | None) -> str:
        if fails:
            raise CannotStream("its weights are pickled")
        return "streamed"

    monkeypatch.setattr(streamed, "available_bytes", lambda: available)
    monkeypatch.setattr(streamed, "obstacle", lambda cfg: None)
    source: Any = SimpleNamespace(open_streamed=open_streamed, weight_bytes=lambda: weights)
    cfg = OmegaConf.create({"hardware": {"stream": asked}})
    return open_if_streamed(cfg, source, None)


@pytest.mark.parametrize(
    ("asked", "available", "result"),
    [
        ("auto", 200, None),
        ("auto", 199, "streamed"),
        ("auto", None, None),
        (True, 10**9, "streamed"),
        (False, 1, None),
    ],
)
def test_auto_streams_weights_above_half_of_the_memory(
    asked: Any, available: int | None, result: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"weights": 100, "available": available, "fails": False}
    assert opened(asked, **settings, monkeypatch=monkeypatch) == result


def test_what_cannot_stream_is_loaded_whole_by_auto_and_refused_by_true(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"weights": 100, "available": 1, "fails": True}
    assert opened("auto", **settings, monkeypatch=monkeypatch) is None
    assert "its weights are pickled" in caplog.text
    with pytest.raises(ValueError, match=r"hardware\.stream=true: its weights are pickled; set"):
        opened(True, **settings, monkeypatch=monkeypatch)
