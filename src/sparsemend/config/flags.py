"""The flags of a class that are read before torch is imported, from the text of its file.

A flag is a constant `ClassVar`, written in the class or inherited; `defines` asks for a method in
the same way.  The contract of the group states every flag's default and meaning; ours and a user's
own class are read alike.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparsemend.config.members import module_file

PRUNER = "sparsemend.pruner.base.Pruner"
SCHEDULE = "sparsemend.sparsity_schedule.base.SparsitySchedule"
METHOD = "sparsemend.method.base.RepairMethod"
HARDWARE = "sparsemend.hardware.Hardware"
DATA = "sparsemend.data.base.DataSource"
FLAGS = {  # flag -> the contract that states its default
    "needs_calibration": PRUNER,
    "prunes": PRUNER,
    "reads_support": PRUNER,
    "takes_gram": PRUNER,
    "uniform": SCHEDULE,
    "repairs": METHOD,
    "trains": METHOD,
    "trains_blocks": METHOD,
    "low_rank": METHOD,
    "foldable": METHOD,
    "streams": METHOD,  # and of a schedule and an evaluation, whose contracts say the same
    "calibration_passes": METHOD,
    "parallel": HARDWARE,
    "needs_tokenizer": DATA,
}


def says(section: Mapping[str, Any], flag: str) -> Any:
    """The value of a flag of FLAGS in the class that builds a section, or else in its contract."""
    return flag_of(str(section.get("_target_") or ""), flag)


def flag_of(target: str, flag: str) -> Any:
    """The value of a flag of FLAGS in the class of a `_target_`, or else in its contract."""
    for place in (target, FLAGS[flag]):
        value = _class_value(place, flag)
        if value is not None:
            return value
    raise ValueError(f"{FLAGS[flag]} states no value of {flag}")


def _class_value(target: str, attribute: str) -> Any:
    """A constant in the body of a class or, in order, of its bases; None where none states it."""
    module, _, name = target.rpartition(".")
    definition = _definition(module, name)
    if definition is None:
        return None
    module, node = definition
    for line in node.body:
        names = list(line.targets) if isinstance(line, ast.Assign) else []
        if isinstance(line, ast.AnnAssign):
            names = [line.target]
        if any(isinstance(name, ast.Name) and name.id == attribute for name in names):
            return _constant(line)
    for base in node.bases:
        inherited = _class_value(_written_name(module, base), attribute)
        if inherited is not None:
            return inherited
    return None


def defines(target: str, method: str) -> bool:
    """Whether the class of a `_target_`, or a base of it below the contract, defines a method.

    The contracts' own classes are left out: what they define may say no more than that there is
    none.
    """
    module, _, name = target.rpartition(".")
    definition = _definition(module, name)
    if definition is None or f"{definition[0]}.{name}" in FLAGS.values():
        return False
    module, node = definition
    if any(isinstance(line, ast.FunctionDef) and line.name == method for line in node.body):
        return True
    return any(defines(_written_name(module, base), method) for base in node.bases)


def _constant(line: ast.stmt) -> Any:
    """The value that an assignment writes out; ValueError, naming the line, unless a constant."""
    assert isinstance(line, ast.Assign | ast.AnnAssign)
    try:
        return None if line.value is None else ast.literal_eval(line.value)
    except ValueError as error:
        raise ValueError(
            f"{ast.unparse(line)} is read before the class is imported; write a constant there"
        ) from error


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """(module, class) where the class of this name is defined, through files that import it."""
    body = _body(module)
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    for node in body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(_absolute(module, node), alias.name)
    return None


def _written_name(module: str, base: ast.expr) -> str:
    """The dotted name of a base class as a target: of `Pruner`, that of this very module."""
    if isinstance(base, ast.Subscript):
        base = base.value
    written = ast.unparse(base)
    first, _, rest = written.partition(".")
    if not rest:
        return f"{module}.{written}"
    for node in _body(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == first:
                    return f"{alias.name}.{rest}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    return f"{_absolute(module, node)}.{alias.name}.{rest}"
    return written


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from` line of a module names."""
    if not node.level:
        return node.module or ""
    file = module_file(module)
    package = file is not None and file.name == "__init__.py"
    parents = module.split(".")[: len(module.split(".")) - node.level + package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _body(module: str) -> list[ast.stmt]:
    file = module_file(module)
    return [] if file is None else _statements(file, file.stat().st_mtime_ns)


@cache
def _statements(file: Path, changed_ns: int) -> list[ast.stmt]:
    """The statements at the top level of a file, which is not run."""
    return ast.parse(file.read_text(encoding="utf-8")).body
