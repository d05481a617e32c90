"""A model in memory as its checkpoint has it: dense linears, fused tensors, its class's names.

Whoever holds a model that `api` has pruned may call its `save_pretrained`, as of any model.  The
class's own would write supports and unfolded experts, which no class loads; so the model brings one
that writes what an export does, without masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import streams
from sparsemend.layout.unfold import fold_within
from sparsemend.run.export import caching, to_dense_
from sparsemend.sparse.linear import sparse_linears


@contextmanager
def as_saved(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """`model`, dense and folded while the block runs; then it has the modules that it had."""
    sparse = dict(sparse_linears(model))
    try:
        with fold_within(to_dense_(model)):
            yield model
    finally:
        for name, linear in sparse.items():
            model.set_submodule(name, linear)


def open_adapters(model: PreTrainedModel) -> list[str]:
    """The saved names of the linears with an adapter that is not folded into the weight."""
    open_ = [name for name, linear in sparse_linears(model) if not linear.holds_support]
    return [saved_name(model, name) for name in open_]


def save_as_class_does_(model: PreTrainedModel) -> None:
    """Give `model` a `save_pretrained` that writes what its class can load, in place.

    A copy of the model has it too, for the copy, and so has one that torch.save wrote, which looks
    a bound method up in the class.
    """
    vars(model)["save_pretrained"] = partial(save_pretrained, model)


def save_pretrained(model: PreTrainedModel, *arguments: Any, **settings: Any) -> None:
    """`save_pretrained` of the model's class, whose arguments it takes, of the model as saved.

    Raises ValueError where an adapter is open, where blocks lie in files, and on a state_dict,
    which is that of other modules.
    """
    if streams(model):
        raise ValueError(
            "blocks of this model lie in files; write it by sparsemend.api.export(model, FOLDER)"
        )
    if settings.get("state_dict") is not None or len(arguments) > 2:
        raise ValueError("the state_dict of this model is not that of its class; leave it out")
    if names := open_adapters(model):
        raise ValueError(
            f"{names[0]} carries an adapter that is not folded into its weight, which a checkpoint "
            "has no place for; write it by sparsemend.api.export(model, folder, repaired=...)"
        )
    with as_saved(model), caching(model):
        type(model).save_pretrained(model, *arguments, **settings)
