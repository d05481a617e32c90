"""The plan of the house: rooms, what they may import, where members and tests lie."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sparsemend"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LAYERS, NO_TORCH, MEMBERS = CONTRACTS
GROUPS = ("data", "pruner", "sparsity_schedule", "method", "evaluation", "logger")
HEAVY = ("torch", "lightning", "transformers", "datasets")
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def members() -> set[str]:
    """Module or folder of every member that a yaml of a group names."""
    targets = {
        target
        for group in GROUPS
        for path in (ROOT / "conf" / group).rglob("*.yaml")
        for target in re.findall(r"^_target_: (sparsemend\.\S+)$", path.read_text(), re.M)
    }
    return {".".join(target.split(".")[:3]) for target in targets}


def sentence_of(file: Path) -> str:
    """The docstring of a module, empty where there is none."""
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def test_the_linter_protects_every_member() -> None:
    assert set(MEMBERS["protected_modules"]) == members()


def test_few_modules_lie_at_the_root() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]) <= 13


def test_a_room_says_in_one_sentence_what_it_knows() -> None:
    sentences = {file: sentence_of(file) for file in PACKAGE.rglob("__init__.py")}
    assert [file for file, sentence in sentences.items() if not re.fullmatch(".+", sentence)] == []


def test_the_page_of_the_house_has_every_room() -> None:
    page = " ".join((PACKAGE / "README.md").read_text().split()).lower()
    lines = [f"{r.name}/ {sentence_of(r / '__init__.py').rstrip('.').lower()}" for r in ROOMS]
    assert [line for line in lines if line not in page] == []


def test_a_folder_of_tests_is_a_room() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    others = {Path(name) for name in (".", "crash", "device", "families", "gpu", "oracles")}
    strangers = [f for f in folders - others if not (PACKAGE / f).is_dir()]
    assert strangers == []


def test_what_early_checks_read_of_a_member_reaches_no_torch() -> None:
    """The files that the linter lets them read, and every file named for its checks."""
    graph = grimp.build_graph(
        "sparsemend", include_external_packages=True, exclude_type_checking_imports=True
    )
    allowed = [line.split(" -> ")[1] for line in MEMBERS["ignore_imports"] if "bench" not in line]
    checks = {*allowed, *(name for name in graph.modules if name.endswith("_checks"))}
    assert checks <= graph.modules
    reached = [
        (name, heavy)
        for name in checks
        for heavy in HEAVY
        if graph.find_shortest_chain(importer=name, imported=heavy)
    ]
    assert reached == []


def test_every_module_of_a_torch_free_room_is_imported_without_torch() -> None:
    """What the linter cannot see: lazy imports that moved up, and torch behind other packages."""
    rooms = tuple(NO_TORCH["source_modules"])
    files = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = [".".join(file.parts).removesuffix(".__init__") for file in files]
    free = [name for name in modules if name.startswith(rooms)]
    # Optuna's sweeper is registered, and its libraries imported, where a search asks for it
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(set(free) - {'sparsemend.sweep.search.sweeper'})}:\n"
        "    importlib.import_module(name)\n"
        f"print(sorted({set(HEAVY)} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_of_ours_is_imported_by_its_name_in_a_string() -> None:
    """Which the linter would not see."""
    pattern = re.compile(r"(import_module|__import__)\([^)]*sparsemend")
    assert [str(path) for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("sparse/pattern.py", "from sparsemend.method.base import Workbench", LAYERS),
        ("table/needs.py", "from sparsemend.run.run import run", LAYERS),
        ("config/values.py", "import torch", NO_TORCH),
        ("preflight/check.py", "from sparsemend.sparse.linear import SparseLinear", NO_TORCH),
        ("run/prune.py", "from sparsemend.pruner.existing import Existing", MEMBERS),
        ("method/perp.py", "from sparsemend.method.lors.lors import Lors", MEMBERS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_import_is_refused(tmp_path: Path, module: str, line: str, contract: dict) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src" / "sparsemend" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stdout
    assert f"{contract['name']} BROKEN" in done.stdout
