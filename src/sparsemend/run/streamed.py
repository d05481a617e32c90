"""Whether a run leaves the blocks of its model in files, and the export of such a model.

`hardware.stream=auto` streams a model whose weights would take more than half of the memory that
this process may have; no number depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

from omegaconf import DictConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel

from sparsemend.blocks.residency import streams, visit_blocks
from sparsemend.blocks.room import available_bytes
from sparsemend.checkpoint.headers import BITS, INDEX, read_header
from sparsemend.config.streaming import obstacle
from sparsemend.errors import CannotStream
from sparsemend.files import write_json
from sparsemend.layout.saved import block_states
from sparsemend.layout.unfold import fold_within
from sparsemend.model import ModelSource

log = logging.getLogger(__name__)

SHARE = 2  # of the memory that is available, one part of so many is for weights
WHOLE = 2**62  # bytes: no shard is cut into several


def open_if_streamed(
    cfg: DictConfig, source: ModelSource, folder: Path | None
) -> PreTrainedModel | None:
    """The model with its blocks left in files, or None where it is to be loaded.

    folder: for changed blocks.  Raises ValueError where hardware.stream=true cannot be done.
    """
    asked = cfg.hardware.get("stream", False)
    return open_where_asked(asked, source, folder, partial(obstacle, cfg))


def open_where_asked(
    asked: bool | str,
    source: ModelSource,
    folder: Path | None,
    reason_against: Callable[[], str | None],
) -> PreTrainedModel | None:
    """The model of `open_if_streamed`.  asked: hardware.stream; reason_against: what obstructs."""
    if asked is False or (asked == "auto" and not _too_large(source)):
        return None
    try:
        if (reason := reason_against()) is not None:
            raise CannotStream(reason)
        model = source.open_streamed(folder=folder)
    except CannotStream as error:
        if asked == "auto":
            log.warning("the model is loaded whole, though it takes half of the memory: %s", error)
            return None
        raise ValueError(f"hardware.stream=true: {error}; set hardware.stream=false") from error
    log.info("the blocks of the model stay in files, and are read one at a time")
    return model


def _too_large(source: ModelSource) -> bool:
    weights, available = source.weight_bytes(), available_bytes()
    return weights is not None and available is not None and weights > available // SHARE


def dense_loader(
    source: ModelSource, seed: int, model: PreTrainedModel
) -> Callable[[], PreTrainedModel]:
    """Loads the dense model once more: one that streams as `model` does, which nobody changes."""
    if streams(model):
        return partial(source.open_streamed, folder=None)
    return partial(source.load, seed=seed)


def save_streamed(model: PreTrainedModel, folder: Path) -> None:
    """Write what `save_pretrained` would, a file per block and one for the rest."""
    with fold_within(model):
        outside = {name: t for name, t in model.state_dict().items() if not t.is_meta}
        # its class's: a model in Python's hands has a method of its own
        type(model).save_pretrained(model, folder, state_dict=outside, max_shard_size=WHOLE)
    states = list(block_states(model))
    count = len(states) + 1
    files = [folder / f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    (folder / "model.safetensors").rename(files[0])
    for state, (index, _, _) in zip(states, visit_blocks(model), strict=True):
        tensors = {name: t.contiguous() for name, t in state.saved_tensors().items()}
        save_file(tensors, files[index + 1], metadata={"format": "pt"})
    headers = {name: (file, h) for file in files for name, h in read_header(file).items()}
    metadata = {
        "total_parameters": model.num_parameters(),
        "total_size": sum(prod(h.shape) * BITS[h.dtype] // 8 for _, h in headers.values()),
    }
    weight_map = {name: file.name for name, (file, _) in sorted(headers.items())}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
