"""The key of a cached result: settings of a machine that decide its bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from sparsemend.run import machine

PRINT = """
import json, torch
from sparsemend.run.machine import machine
print(json.dumps(machine(torch.device("cpu"))))
"""
CPU = torch.device("cpu")


def test_the_settings_are_json_and_the_same_when_read_again() -> None:
    assert json.loads(json.dumps(machine.machine(CPU))) == machine.machine(CPU)


@pytest.mark.parametrize("name", machine.CHOOSE_KERNELS)
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
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", tmp_path / "none")
    assert machine.processor().endswith(")")


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
