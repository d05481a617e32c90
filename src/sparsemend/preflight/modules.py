"""Refuse a configured class that Python does not find, before anything is loaded."""

from __future__ import annotations

import ast
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.config.locations import PACKAGE, conf_folder
from sparsemend.config.members import targets

OURS = "sparsemend"
BUILT = {  # group that a run builds -> an override that chooses a member
    "model": "model=tiny",
    "data": "data=python_docs",
    "pruner": "pruner=none",
    "sparsity_schedule": "sparsity_schedule=uniform",
    "method": "method=none",
    "hardware": "hardware=cpu",
    "evaluation": "evaluation=[perplexity]",
    "logger": "logger=[none]",
}


def check_groups(cfg: DictConfig) -> None:
    """Raise ValueError where a group that a run builds has no member, as after `logger=[]`."""
    for group, example in BUILT.items():
        if group not in cfg:
            raise ValueError(f"{group} has no member, and a run needs one; choose it, {example}")


def check_modules(cfg: DictConfig) -> None:
    """Raise ValueError on a `_target_` that names no class of ours, or no module of the user's.

    Of a user's own class only the first part of its path is looked up, since a deeper look would
    import the user's package.
    """
    for key, target in targets(cfg):
        top = target.partition(".")[0]
        if top == OURS:
            _check_our_class(key, target)
        elif not top or (top not in sys.modules and find_spec(top) is None):
            raise ValueError(
                f"{key} is built by {target}, but Python finds no module {top}; put the "
                f"folder of {top}.py on PYTHONPATH"
            )


def _check_our_class(key: str, target: str) -> None:
    """Raise ValueError where the class has moved since a config was stored."""
    if _is_defined(target.split(".")[1:]):
        return
    name = target.rpartition(".")[2]
    places = sorted(_places(name))
    hint = f" (its {name} is {' or '.join(places)})" if places else ""
    raise ValueError(
        f"{key} is built by {target}, which this version of sparsemend does not have{hint}; "
        "repeat a stored run by its own command, and name a class by its present place"
    )


def _is_defined(parts: list[str]) -> bool:
    """Whether folders, a file and a name at its top level are there; what follows is not seen."""
    for count in range(1, len(parts)):
        file = Path(PACKAGE, *parts[:count]).with_suffix(".py")
        if file.is_file():
            return parts[count] in _names_of(file)
    return False


def _names_of(file: Path) -> set[str]:
    """Classes, functions, imports and variables at the top level of a file, which is not run."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return names


def _places(name: str) -> set[str]:
    """The targets in conf/ that are classes of this name."""
    pattern = re.compile(rf"^\s*_target_: (sparsemend\.\S+\.{re.escape(name)})$", re.MULTILINE)
    texts = (path.read_text(encoding="utf-8") for path in conf_folder().rglob("*.yaml"))
    return {place for text in texts for place in pattern.findall(text)}
