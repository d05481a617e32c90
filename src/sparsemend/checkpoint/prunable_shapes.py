"""The shapes of the linears that a run may prune, from safetensors headers and `prunable` alone.

Files say the saved names.  Those of the modules are the same, or follow from the saved ones, but
where transformers names tensors anew when it loads them.  A pattern of a user's own may be meant
for a name that comes only then, and only the loaded model knows what it matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.architecture import renames_tensors
from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import block_number, has_experts, linear_shapes
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
    modules, prunable = module_names(shapes, config), PrunableNames.of(cfg)
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


def module_names(names: Iterable[str], config: Mapping[str, Any] | None) -> dict[str, str] | None:
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


def weights_per_block(linears: Mapping[str, TensorShape]) -> list[int]:
    """Weights of every block, in their order; a block without any of these linears is left out."""
    weights: dict[int, int] = {}
    for name, shape in linears.items():
        block = block_number(name)
        weights[block] = weights.get(block, 0) + prod(shape)
    return [weights[block] for block in sorted(weights)]
