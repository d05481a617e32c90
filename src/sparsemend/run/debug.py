"""A debug run (`debug=fast`): the first blocks of the model, a few windows, a few steps.

It goes through every stage of a real run in seconds.  Its `result.json` holds the configuration as
composed, and the section `debug` that says how it was cut.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.find import find_blocks
from sparsemend.model import ModelSource
from sparsemend.run.windows import Windows

log = logging.getLogger(__name__)


class FirstBlocks(ModelSource):
    """The first decoder blocks of another source's model."""

    def __init__(self, source: ModelSource, blocks: int) -> None:
        self.source, self.blocks = source, blocks
        self.name, self.context_length = source.name, source.context_length

    def load(self, *, seed: int) -> PreTrainedModel:
        return self._shorten_(self.source.load(seed=seed))

    def _shorten_(self, model: PreTrainedModel) -> PreTrainedModel:
        _, blocks = find_blocks(model)
        config: Any = model.config.get_text_config()
        if vars(config).get("hidden_size_per_layer_input"):  # one tensor with a part per block
            log.warning("this model keeps its %d blocks: one tensor feeds all of them", len(blocks))
            return model
        del blocks[self.blocks :]
        config.num_hidden_layers = len(blocks)
        # an entry per block in some families; in others computed from the number of blocks
        if types := vars(config).get("layer_types"):
            config.layer_types = types[: len(blocks)]
        return model

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        return self._shorten_(self.source.open_streamed(folder=folder))

    def weight_bytes(self) -> int | None:
        return self.source.weight_bytes()

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.source.tokenizer()

    def companions(self) -> list[Path]:
        return self.source.companions()

    def stored_as(self) -> str | None:
        return self.source.stored_as()


def cut_short(cfg: DictConfig) -> DictConfig:
    """`cfg` with the values of debug.keys; `cfg` itself where no debug run is asked for."""
    if cfg.get("debug") is None:
        return cfg
    shorter = copy.deepcopy(cfg)
    _replace_(shorter, cfg.debug["keys"])
    return shorter


def _replace_(section: DictConfig, values: DictConfig) -> None:
    for key, value in values.items():
        if key not in section:
            continue
        if isinstance(value, DictConfig):
            _replace_(section[key], value)
        else:
            section[key] = value


def first_windows(windows: Windows, count: int) -> Windows:
    """The first `count` windows of test, task and validation, and what else there is."""
    return Windows(
        test=windows.test[:count],
        calibration=windows.calibration,
        train=windows.train,
        validation=windows.validation.first(count),
        task=None if windows.task is None else windows.task.first(count),
    )
