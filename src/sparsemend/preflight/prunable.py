"""Hold `prunable.include` and `prunable.exclude` against the names that safetensors headers say.

Files say the saved names.  Those of the modules are the same, or follow from the saved ones, but
where transformers names tensors anew when it loads them.  A pattern of a user's own may be meant
for a name that comes only then; so these models are asked once they are loaded (`blocks/choice`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.architecture import renames_tensors
from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import has_experts, linear_shapes
from sparsemend.config.prunable import PrunableNames, defaults, matches

# an expert's linear as `linear_shapes` names it
EXPERT = re.compile(r"(.*)\.(gate_up|up|down)_proj\[(\d+)(?:, (gate|up))?\]")


def prunable_shapes(
    cfg: DictConfig, blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> dict[str, TensorShape]:
    """Saved name -> (O, I) of the linears inside the blocks that may lose weights.

    config: the content of config.json.  Empty where only the loaded model knows what patterns of
    the user's own match.  The routers of a mixture are left out whatever the choice is: most are no
    linears, and no file says which are.
    """
    shapes = linear_shapes(blocks, config)
    modules, prunable = _modules(shapes, config), PrunableNames.of(cfg)
    if modules is None:
        usual = prunable.include is None and prunable.exclude == defaults()
        modules = {name: name for name in shapes} if usual else {}
    if has_experts(shapes):
        shapes = {name: s for name, s in shapes.items() if not matches(defaults(), name)}
    return {
        name: shape
        for name, shape in shapes.items()
        if name in modules and prunable.allow(name, modules[name])
    }


def check_prunable(
    cfg: DictConfig, blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError on a pattern that matches no linear of these headers, and if none is left.

    A file may leave out the first parts of the model's names.
    """
    names = list(linear_shapes(blocks, config))
    modules = _modules(names, config)
    if not modules:
        return
    prunable = PrunableNames.of(cfg)
    include = None if prunable.include is None else _without_prefix(prunable.include, names)
    exclude = _without_prefix(prunable.exclude, names)
    saved = {module: name for name, module in modules.items()}
    replace(prunable, include=include, exclude=exclude).check(saved)


def _modules(names: Iterable[str], config: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Saved name -> module name of the linears; None where files alone do not say it."""
    names = list(names)
    modules = {name: _module(name) for name in names}
    complete = all("[" not in module for module in modules.values())
    in_stacks = any("[" in name for name in names) or not has_experts(names)
    renames = renames_tensors(str((config or {}).get("model_type")))
    return modules if complete and in_stacks and not renames else None


def _module(name: str) -> str:
    """The name in memory of a linear, which has another one where it is an expert of a stack."""
    if not (match := EXPERT.fullmatch(name)):
        return name
    experts, tensor, number, half = match.groups()
    return f"{experts}.{number}.{half or tensor}_proj"


def _without_prefix(patterns: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """The patterns without first parts that the files leave out of all names."""
    return tuple(next((p for p in _ends(pattern) if p in names), pattern) for pattern in patterns)


def _ends(pattern: str) -> list[str]:
    parts = pattern.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
