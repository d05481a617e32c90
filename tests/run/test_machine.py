"""The key of a cached result: settings of a machine that decide its bits."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsemend.engine.build import KEY
from sparsemend.run import machine

PRINT = """
import json, torch
from sparsemend.run.machine import machine
print(json.dumps(machine(torch.device("cpu"))))
"""
CPU = torch.device("cpu")


def test_the_settings_are_json_and_the_same_when_read_again() -> None:
    assert json.loads(json.dumps(machine.machine(CPU))) == machine.machine(CPU)


@pytest.mark.parametrize("name", sorted({*machine.CHOOSE_KERNELS, KEY}))
def test_a_variable_that_chooses_kernels_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.machine(CPU)
    monkeypatch.setenv(name, "something else")
    assert machine.machine(CPU) != before


def test_the_precision_of_products_counts() -> None:
    before, precision = machine.machine(CPU), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert machine.machine(CPU) != before
    finally:
        torch.set_float32_matmul_precision(precision)


def test_a_system_that_names_no_processor_has_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "a processor")
    assert machine.processor() == {"machine": platform.machine(), "model name": "a processor"}


def test_the_features_of_a_processor_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for features in ("avx2", "avx2 amx_bf16"):
        text = f"processor : 0\nmodel name : Generic\nflags : {features}\ncpu MHz : 1\n\nmore : 1\n"
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(machine, "PROCESSORS", tmp_path / "cpuinfo")
        told.append(machine.processor())
    assert told[0] == {"machine": platform.machine(), "model name": "Generic", "flags": "avx2"}
    assert told[0] != told[1]


@pytest.mark.slow
def test_the_precision_of_a_users_module_counts_and_breaks_nothing() -> None:
    """In a process of its own: torch refuses to read its older settings afterwards."""
    ask = f"import torch\ntorch.backends.mkldnn.matmul.fp32_precision = 'bf16'\n{PRINT}"
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for code in (PRINT, ask)
    ]
    assert said[0].stdout != said[1].stdout


@pytest.mark.slow
def test_two_capabilities_of_one_processor_give_two_keys() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", PRINT],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for capability in ("default", "avx2")
    ]
    one, other = (json.loads(text)["cpu_capability"] for text in said)
    assert one != other
