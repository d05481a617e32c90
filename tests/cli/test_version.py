"""Every command says which sparsemend it is of, and with which libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import sparsemend
from sparsemend.cli import bench, check, evolution, generate, main, tables

COMMANDS = {
    "sparsemend": main.main,
    "sparsemend-bench": bench.main,
    "sparsemend-check": check.main,
    "sparsemend-evolution": evolution.main,
    "sparsemend-generate": generate.main,
    "sparsemend-tables": tables.main,
}


@pytest.mark.parametrize(("name", "entry"), COMMANDS.items())
def test_version_is_ours_and_names_the_libraries(
    name: str,
    entry: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert not stop.value.code
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name} {sparsemend.__version__}")
    assert second.startswith("python 3.")
    assert {"torch", "lightning", "transformers", "hydra-core"} <= set(second.split())
