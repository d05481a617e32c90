"""The wheel holds all that a run needs, and what it imports is what it asks for."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"[\w.-]+")


def carry_out(*argv: str | Path, folder: Path) -> str:
    """Run a command outside the checkout, with nothing of it on Python's path; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_does_a_run_outside_the_checkout(tmp_path: Path) -> None:
    """Its venv has the wheel, and sees the other packages here, but no editable installation."""
    pip = (sys.executable, "-m", "pip")
    carry_out(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("sparsemend-*.whl")
    carry_out(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    commands = tmp_path / "venv" / "bin"
    carry_out(commands / "pip", "install", "-q", "--no-deps", wheel, folder=tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = carry_out(
        commands / "python", "-c", "import sparsemend; print(sparsemend.__file__)", folder=tmp_path
    )
    assert where.startswith(str(tmp_path))
    carry_out(commands / "sparsemend", "method=none", "hydra.run.dir=run", folder=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    metrics = [result["metrics"][state]["perplexity/test"] for state in ("dense", "pruned")]
    assert metrics == pytest.approx([15.025, 35.593], rel=5e-3)
    for name in ("bench", "check", "doctor", "evolution", "tables"):
        assert f"sparsemend-{name}" in carry_out(
            commands / f"sparsemend-{name}", "--help", folder=tmp_path
        )


def imports() -> dict[str, Path]:
    """First names of what the package imports from elsewhere -> a file that does."""
    named = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            named |= {module.partition(".")[0]: path for module in modules}
    ours = {*sys.stdlib_module_names, "sparsemend"}
    return {name: path for name, path in named.items() if name not in ours}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brings(distribution: str, into: set[str], *, extras: bool = False) -> set[str]:
    """What installing a distribution brings; of ours also its extras, but not what tests need."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # for another platform, or an extra that is not here
        return into
    for line in lines:
        needed = normal(REQUIREMENT.match(line)[0])  # type: ignore[index]
        optional = "extra ==" in line
        if needed not in into and (not optional or (extras and "dev" not in line)):
            into.add(needed)
            brings(needed, into)
    return into


@pytest.mark.slow
def test_all_that_the_package_imports_comes_with_it() -> None:
    """`dev` would hide a package that a user does not get."""
    there = brings("sparsemend", set(), extras=True)
    providers = metadata.packages_distributions()
    assert "torch" in there
    assert "pytest" not in there
    for name, path in imports().items():
        if name in providers:  # what is not here are extras
            assert there & {normal(provider) for provider in providers[name]}, f"{name} in {path}"
