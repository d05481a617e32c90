"""Sources of a model: hub id, local folder, GGUF file, the shipped tiny model, random weights."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sparsemend.checkpoint.gguf import ready_folder, remarks, stored_as
from sparsemend.config.gguf import gguf_file
from sparsemend.errors import CannotStream
from sparsemend.layout.unfold import unfold_
from sparsemend.names import DTYPE_NAMES
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.streamed import weight_bytes
from sparsemend.pretrained.streamed_blocks import open_streamed

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


class ModelSource(ABC):
    """Loads the same dense model every time it is asked."""

    name: str
    context_length: int

    @abstractmethod
    def load(self, *, seed: int) -> PreTrainedModel:
        """The dense causal LM in eval mode on the CPU, caching off, unfolded (`layout.unfold_`)."""

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        """The model of `load` as a skeleton on the CPU, whose blocks lie in files.

        folder: for changed blocks, None where none will change.  Raises CannotStream with the
        reason where there are no such files.
        """
        raise CannotStream(f"{type(self).__name__} has no files of weights")

    def weight_bytes(self) -> int | None:
        """Bytes of its weights in memory, where files tell."""
        return None

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, or None where the folder has none (pre-tokenised data)."""

    def companions(self) -> list[Path]:
        """Files that an export carries along as they are."""
        return []

    def stored_as(self) -> str | None:
        """The types in which its weights were stored, where they are not numbers in the file."""
        return None


@dataclass(kw_only=True)
class PretrainedModel(ModelSource):
    """Any Hugging Face causal LM, by hub id or local folder, a multimodal one included."""

    name: str
    path: str
    revision: str | None
    dtype: str
    context_length: int
    attention: str | None
    trust_remote_code: bool

    def load(self, *, seed: int) -> PreTrainedModel:
        model = self._checkpoint.load(dtype=DTYPES[self.dtype], attention=self.attention)
        unfold_(model)
        return model.eval()

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        dtype = DTYPES[self.dtype]
        return open_streamed(self._checkpoint, dtype=dtype, attention=self.attention, folder=folder)

    def weight_bytes(self) -> int | None:
        return weight_bytes(self._checkpoint, DTYPES[self.dtype])

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self._checkpoint.tokenizer()

    def companions(self) -> list[Path]:
        return self._checkpoint.processor_files()

    @property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            path=self.path, revision=self.revision, trust_remote_code=self.trust_remote_code
        )


@dataclass(kw_only=True)
class GgufModel(PretrainedModel):
    """A causal LM in a GGUF file, whose weights are turned back into numbers once.

    path: the file, or `package:NAME`.  digest: the SHA-256 of the file, which the configuration
    holds in place of the folder that was made of it.
    """

    digest: str
    reported: bool = field(default=False, init=False)  # a run may load its dense model again

    def load(self, *, seed: int) -> PreTrainedModel:
        model = super().load(seed=seed)
        self._report()
        return model

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        model = super().open_streamed(folder=folder)
        self._report()
        return model

    def _report(self) -> None:
        file = gguf_file(self.path)
        if file is not None and not self.reported:
            for line in remarks(ready_folder(file)):
                log.warning("%s", line)
            self.reported = True

    def stored_as(self) -> str | None:
        return stored_as(self.path)


@dataclass(kw_only=True)
class UntrainedModel(ModelSource):
    """Random weights of a given architecture, with a BPE tokenizer trained on the embedded docs."""

    name: str
    architecture: dict[str, Any]
    vocabulary: int
    dtype: str
    context_length: int

    def load(self, *, seed: int) -> PreTrainedModel:
        settings = {**self.architecture, "vocab_size": self.vocabulary}
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype])
        model.config.use_cache = False
        unfold_(model)
        return model.eval()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from sparsemend.data.documentation import SEPARATOR, split_text

        return train_tokenizer(split_text("train").split(SEPARATOR), self.vocabulary)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly `vocabulary` entries, one of them <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
