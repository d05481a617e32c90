"""What a linear is called where a person reads of it: as its checkpoint calls it.

Code calls a linear by its module.  `layout.names` notes on a model, once, under which names its
checkpoint holds the linears and the blocks, as far as they differ; what is read by people looks
them up here, at the moment it is written.  The forms of a name: `layout/README.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

SAVED_NAMES = "saved_names"  # an attribute of a model: module name -> saved name, where they differ
T = TypeVar("T")


def saved_name(model: nn.Module, name: str) -> str:
    """The saved name of the linear or block that `model` calls `name`."""
    differing: Mapping[str, str] = vars(model).get(SAVED_NAMES, {})
    return differing.get(name, name)


def with_saved_names(model: nn.Module, values: Mapping[str, T]) -> dict[str, T]:
    """`values`, of linears or blocks by module name, by saved name."""
    return {saved_name(model, name): value for name, value in values.items()}


def with_module_names(
    model: nn.Module, values: Mapping[str, T], modules: Iterable[str]
) -> dict[str, T]:
    """The value of each of these linears, by module name, from `values` by saved or module name.

    One that `values` does not have is left out.
    """
    names = {name: saved_name(model, name) for name in modules}
    either = {name: saved if saved in values else name for name, saved in names.items()}
    return {name: values[key] for name, key in either.items() if key in values}
