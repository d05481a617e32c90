"""The settings of a checkpoint by which its model generates text, which an export carries along."""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from sparsemend.pretrained.cause import cause

log = logging.getLogger(__name__)


def generation_config_of(place: str, revision: str) -> GenerationConfig:
    """Those of a folder or hub id as a loader of transformers reads them there."""
    try:
        return GenerationConfig.from_pretrained(place, revision=revision)
    except OSError:  # there is no generation_config.json
        return GenerationConfig.from_pretrained(
            place, revision=revision, config_file_name=CONFIG_NAME, _from_model_config=True
        )


def mend_generation_config_(path: str, model: PreTrainedModel) -> None:
    """Replace generation settings that could not be saved, so that an export does not end there."""
    if not model.can_generate():
        return
    try:
        with TemporaryDirectory() as folder:
            model.generation_config.save_pretrained(folder)
    except ValueError as error:
        log.warning(
            "generation_config.json of %s cannot be saved again and is left out: %s",
            path,
            cause(error),
        )
        model.generation_config = GenerationConfig()
