"""Offline settings and shared fixtures."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from support.configs import reading_once
from support.families import random_model
from support.process_state import process_state
from transformers import PreTrainedModel

from sparsemend.cli import main as cli
from sparsemend.config.values import config_hash, plain
from sparsemend.files import write_json
from sparsemend.names import METRIC, VALIDATION_METRIC

# tests that interrupt a command need it to listen, also where a shell started pytest in the
# background, which ignores the signal and hands that on
signal.signal(signal.SIGINT, signal.default_int_handler)
reading_once()
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands under test


@pytest.fixture
def tokens() -> torch.Tensor:
    """Eight windows of 24 random tokens."""
    return torch.randint(3, 96, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return random_model


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, list[DictConfig]]]]:
    """Runs the command in this process around a given `run`; returns exit code and seen configs.

    A job leaves the result.json that it would, with what `run` returns as its perplexities.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.preflight, "check", lambda cfg: None)

    def invoke(
        *arguments: str, run: Callable[[DictConfig], float] = lambda cfg: 1.0
    ) -> tuple[int, list[DictConfig]]:
        seen: list[DictConfig] = []
        module = ModuleType("sparsemend.run.run")

        def recorded(cfg: DictConfig) -> float:
            seen.append(cfg)
            value = run(cfg)
            leave_result(cfg, value)
            return value

        module.run = recorded  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sparsemend.run.run", module)
        monkeypatch.setattr(sys, "argv", ["sparsemend", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), seen
        return 0, seen

    with process_state():
        yield invoke


def leave_result(cfg: DictConfig, value: float) -> None:
    """The result.json of a finished job, as far as sweeps and searches read it."""
    metrics = dict.fromkeys((METRIC, VALIDATION_METRIC), value if math.isfinite(value) else None)
    content = {
        "status": "finished",
        "config": plain(cfg),
        "config_hash": config_hash(plain(cfg)),
        "process": {"host": "host", "pid": 1},
        "metrics": dict.fromkeys(("dense", "pruned", "repaired"), metrics),
    }
    write_json(Path(HydraConfig.get().runtime.output_dir) / "result.json", content)
