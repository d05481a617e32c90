"""Hold the tensors of a checkpoint against what transformers' class of its model type builds.

A tensor without a place (fused q, k and v for a class that has three), a bias too many or missing,
and a size that config.json contradicts are refused here, where the text of the class says so.  What
that leaves open, classes of several parts or from elsewhere, and tensors that get other names as
they are loaded are left to the loader (`pretrained/tensors.py`), which knows them all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparsemend.checkpoint.architecture import (
    CAUSAL,
    Architecture,
    Tables,
    inside_transformers,
    renames_tensors,
)
from sparsemend.checkpoint.constructors import BuiltLinear, built_linears, complete
from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import block_tensors, text_values
from sparsemend.checkpoint.names import name_some

WEIGHT, BIAS = ".weight", ".bias"
REMEDY = "give the config.json and the weights of one model, as save_pretrained writes them"
QUOTED = re.compile(r"[\"']([^\"']+)[\"']")
ON_PURPOSE = re.compile(r"_keys_to_ignore_on_load_\w+\s*=\s*(\[[^\]]*\])")
Built = Mapping[str, list[BuiltLinear | None]]


@dataclass(frozen=True)
class ModelClass:
    """The class of a model type, and the text of the module that defines it."""

    name: str
    text: str
    built: Built

    def ignores(self, tensor: str) -> bool:
        """Whether the module says that a file may lack a tensor, or hold it in vain."""
        patterns = (p for text in ON_PURPOSE.findall(self.text) for p in QUOTED.findall(text))
        return any(re.search(pattern, tensor) for pattern in patterns)

    def names(self, attribute: str) -> bool:
        """Whether the module has an attribute of this name anywhere."""
        return re.search(rf"\b{re.escape(attribute)}\b", self.text) is not None


def check_places(
    path: str, values: Mapping[str, Any], shapes: Mapping[str, TensorShape], tables: Tables
) -> None:
    """Raise ValueError on tensors that the model's class would not take as they are."""
    taker = model_class(values, tables)
    if taker is None:
        return
    inside = block_tensors(shapes, values)
    if foreign := [name for name in inside if _is_foreign(name, taker)]:
        raise ValueError(
            f"model {path} does not fit {taker.name}, which its config.json asks for: the file "
            f"holds, without a place for it, {name_some(foreign)} ({len(foreign)} in all); {REMEDY}"
        )
    if sizes := list(_other_sizes(shapes, taker)):
        name, expected = sizes[0]
        raise ValueError(
            f"model {path} does not fit its config.json: {name} is {shapes[name]} in the file and "
            f"{expected} in {taker.name} ({len(sizes)} tensors differ in size); {REMEDY}"
        )
    missing, spare = _biases(inside, taker)
    if biases := missing or spare:
        what = (
            "lacks, so that they would be random" if missing else "holds, without a place for them"
        )
        raise ValueError(
            f"model {path} does not fit {taker.name} by its config.json: the file {what} "
            f"the biases {name_some(biases)} ({len(biases)} in all); {REMEDY}"
        )


def _is_foreign(name: str, taker: ModelClass) -> bool:
    """Whether the name of a saved weight ends in an attribute that no class of the module has."""
    attribute = _attribute(name, WEIGHT)
    return attribute is not None and not (taker.names(attribute) or taker.ignores(name))


def _attribute(name: str, ending: str) -> str | None:
    """The attribute that holds a weight or bias; None for a number, or another kind of tensor."""
    attribute = name.removesuffix(ending).rpartition(".")[2]
    return attribute if name.endswith(ending) and not attribute.isdigit() else None


def _other_sizes(shapes: Mapping[str, TensorShape], taker: ModelClass) -> Iterator[tuple[str, str]]:
    """The names of weights whose size is that of no constructor, with the size of one."""
    for name, shape in shapes.items():
        linears = taker.built.get(_attribute(name, WEIGHT) or "", [])
        if not linears or taker.ignores(name):
            continue
        expected = [linear.shape for linear in linears if linear is not None]
        if len(expected) == len(linears) and not any(_fits(shape, sizes) for sizes in expected):
            yield name, f"({', '.join('any' if s is None else str(s) for s in expected[0])})"


def _fits(shape: TensorShape, sizes: tuple[int | None, int | None]) -> bool:
    pairs = zip(sizes, shape, strict=False)
    return len(shape) == len(sizes) and all(size in (None, axis) for size, axis in pairs)


def _biases(inside: Mapping[str, TensorShape], taker: ModelClass) -> list[list[str]]:
    """(missing, spare) biases of the linears in the blocks."""
    missing, spare = [], []
    for name in inside:
        linears = taker.built.get(_attribute(name, WEIGHT) or "", [])
        stated = {None if linear is None else linear.bias for linear in linears}
        bias = name.removesuffix(WEIGHT) + BIAS
        if stated == {True} and bias not in inside:
            missing.append(bias)
        elif stated == {False} and bias in inside:
            spare.append(bias)
    return [[name for name in names if not taker.ignores(name)] for names in (missing, spare)]


def model_class(values: Mapping[str, Any], tables: Tables) -> ModelClass | None:
    """The class that loads a checkpoint of one part, None where its text does not tell all."""
    kind = Architecture.of(values)
    name = tables.causal.get(kind.model_type)
    parts = any(key.endswith("_config") and isinstance(v, Mapping) for key, v in values.items())
    if kind.auto_class(tables) != CAUSAL or kind.code or parts or not isinstance(name, str):
        return None
    if renames_tensors(kind.model_type):
        return None
    text = _model_text(kind.model_type, name)
    config = _config_class(kind.model_type, _texts(kind.model_type, "configuration"))
    if text is None or config is None or re.search(r"^from \.\.\w+\.modeling_", text, re.M):
        return None
    config_class, config_text = config
    complete_values = complete(ast.parse(config_text), config_class, values)
    return ModelClass(name, text, built_linears(ast.parse(text), complete_values, config_class))


def uncalled_linears(values: Mapping[str, Any], tables: Tables) -> frozenset[str]:
    """The attributes that a model's class builds as linears and calls nowhere, as Mamba's dt_proj.

    Their weight alone is read, so that a run leaves them dense.
    """
    model_type = Architecture.of(values).model_type
    name = tables.causal.get(model_type)
    text = _model_text(model_type, name) if isinstance(name, str) else None
    built = set(re.findall(r"self\.(\w+) = nn\.Linear\(", text or ""))
    return frozenset(name for name in built if not re.search(rf"\.{name}\(", text or ""))


def class_words(values: Mapping[str, Any]) -> frozenset[str] | None:
    """Every word in the modules that define a config.json's model; None where they are unknown.

    A linear that is named anew when it is loaded has a name of these words, and numbers.
    """
    types = {str(v["model_type"]) for v in (values, text_values(values)) if v.get("model_type")}
    texts = [text for model_type in types for text in _texts(model_type, "modeling")]
    if not texts or any(re.search(r"^from \.\.\w+\.modeling_", text, re.M) for text in texts):
        return None
    return frozenset(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))


def _model_text(model_type: str, name: str) -> str | None:
    """The text of the module that defines a class, where it lies in the folder of its type."""
    texts = _texts(model_type, "modeling")
    return next((t for t in texts if re.search(rf"^class {name}\(", t, re.M)), None)


def _texts(model_type: str, kind: str) -> list[str]:
    folder = _folder(model_type)
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{kind}_*.py"))]


def _config_class(model_type: str, texts: Iterable[str]) -> tuple[str, str] | None:
    """The class of a model type's config, and the text of its module."""
    pattern = rf"^class (\w+)\((?:(?!^class ).)*?^    model_type = \"{re.escape(model_type)}\""
    for text in texts:
        if match := re.search(pattern, text, re.M | re.S):
            return match[1], text
    return None


@cache
def _folder(model_type: str) -> Path:
    """The folder of transformers with the modules of a model type; it need not exist."""
    name = model_type.removesuffix("_text").replace("-", "_")
    return inside_transformers("models", name)
