"""Load a checkpoint whole, or refuse it in one line: the class that its config names, or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import (
    FEATURE_EXTRACTOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    cached_file,
)

from sparsemend.checkpoint.architecture import CAUSAL, Architecture, installed_tables
from sparsemend.checkpoint.gguf import ready_folder
from sparsemend.checkpoint.headers import read_header, weight_files
from sparsemend.checkpoint.model import check_pickled
from sparsemend.checkpoint.quantisation import check_quantisation
from sparsemend.checkpoint.tokenizer import INSTALL, check_tokenizer, has_tokenizer
from sparsemend.config.gguf import gguf_file
from sparsemend.config.locations import resolve_path
from sparsemend.errors import blame
from sparsemend.pretrained.attention import check_attention
from sparsemend.pretrained.cause import cause
from sparsemend.pretrained.generation import generation_config_of, mend_generation_config_
from sparsemend.pretrained.hub import snapshot_of
from sparsemend.pretrained.report import keep_report
from sparsemend.pretrained.tensors import check_tensors, warn_left_out

log = logging.getLogger(__name__)

PICKLE_HINT = "if its weights are pickled (.bin) and you trust them, model.trust_remote_code=true"
PROCESSOR_FILES = (FEATURE_EXTRACTOR_NAME, VIDEO_PROCESSOR_NAME, PROCESSOR_NAME)
SENTENCEPIECE_HINT = f"a tokenizer.model of SentencePiece needs {INSTALL}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder or hub id, and whether Python code and pickles that it brings are trusted."""

    path: str
    revision: str | None
    trust_remote_code: bool

    @property
    def place(self) -> str:
        """The folder or hub id; of a GGUF file the folder that is made of it."""
        if (file := gguf_file(self.path)) is not None:
            return str(ready_folder(file))
        return resolve_path(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """What transformers is told at every call."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load(self, *, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
        """The whole model in eval mode on the CPU, caching off.

        attention: None for the model's own choice.  Raises ValueError with the cause in one line.
        """
        config = self.checked_config(attention)
        if self._files() == []:
            check_pickled(self.path, trust_remote_code=self.trust_remote_code)
        loader = self.auto_class(config).from_pretrained
        return self.load_by(loader, config, dtype=dtype, attention=attention)

    def load_by(
        self,
        loader: Callable[..., Any],
        config: PreTrainedConfig,
        *,
        dtype: torch.dtype,
        attention: str | None,
        state: Mapping[str, Any] | None = None,
    ) -> PreTrainedModel:
        """The model that a `from_pretrained` makes of this checkpoint, or of `state`, its tensors.

        Raises ValueError in one line where the tensors are not those of the class.
        """
        files = self._files()
        hint = "" if files is not None or self.trust_remote_code else PICKLE_HINT
        with self.blame("be loaded", hint), keep_report(self.path):
            # sizes that do not fit are refused below, by name, as all the rest
            model, report = loader(
                self.place if state is None else None,
                config=config,
                dtype=dtype,
                generation_config=self._generation_config(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=None if self.trust_remote_code else True,
                weights_only=True,
                **({} if attention is None else {"attn_implementation": attention}),
                **({} if state is None else {"state_dict": dict(state)}),
                **self.settings,
            )
        check_tensors(self.path, model, report)
        warn_left_out(
            self.path, model, [name for file in files or () for name in read_header(file)]
        )
        if state is not None:
            self._place_(model)
        mend_generation_config_(self.path, model)
        model.config.use_cache = False
        result: PreTrainedModel = model.eval()
        return result

    def folder(self) -> Path | None:
        """The folder with its weights; of a hub id one with its safetensors, downloaded, if any."""
        if Path(self.place).is_dir():
            return Path(self.place)
        with self.blame("be loaded"):
            return snapshot_of(self.place, self.revision)

    def _place_(self, model: PreTrainedModel) -> None:
        """Note on a model of tensors what a loader of this checkpoint would have read there."""
        model.name_or_path = model.config.name_or_path = self.place
        if not model.can_generate() or self._generation_config() is not None:
            return
        model.generation_config = generation_config_of(self.place, self._revision)

    def checked_config(self, attention: str | None) -> PreTrainedConfig:
        """The config to load with, packed weights to be unpacked; ValueError as `load`."""
        config = self.config()
        if attention is not None:
            auto = self.auto_class(config)
            check_attention(self.path, auto, config, attention, self.trust_remote_code)
        dequantise_(config)
        return config

    def config(self) -> PreTrainedConfig:
        """The config of the checkpoint; raises ValueError on one that is quantised or foreign."""
        with self.blame("be loaded"):
            values, _ = PreTrainedConfig.get_config_dict(self.place, revision=self.revision)
        tables = installed_tables()
        if tables is not None:
            kind = Architecture.of(values)
            kind.check(self.path, tables, trust_remote_code=self.trust_remote_code)
        check_quantisation(self.path, values)
        with self.blame("be loaded"):
            config: PreTrainedConfig = AutoConfig.from_pretrained(self.place, **self.settings)
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, or None where the folder has none; raises ValueError on a broken one."""
        folder = Path(self.place)
        if folder.is_dir():
            if not has_tokenizer(folder):
                return None
            check_tokenizer(folder)
            self.config()  # the tokenizer is not to blame for it
        hint = "" if find_spec("sentencepiece") or folder.is_dir() else SENTENCEPIECE_HINT
        with self.blame("give its tokenizer", hint):
            self._check_tokenizer_code()
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.place, **self.settings
            )
        if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
            raise ValueError(
                f"the tokenizer of model {self.path} has no vocabulary, so every text would be "
                "unknown tokens; give a folder with its tokenizer.json"
            )
        return tokenizer

    def processor_files(self) -> list[Path]:
        """The settings of what turns images and sound into inputs, where the checkpoint has any."""
        paths = (
            cached_file(
                self.place,
                name,
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in PROCESSOR_FILES
        )
        return [Path(path) for path in paths if path is not None]

    def blame(self, what: str, hint: str = "") -> AbstractContextManager[None]:
        """Turn what a library raises inside into one line: this model cannot `what`."""
        return blame(f"model {self.path} cannot {what}", hint, say=cause)

    def _check_tokenizer_code(self) -> None:
        """Raise ValueError where only Python code of the checkpoint's own reads the tokenizer."""
        config = get_tokenizer_config(self.place, revision=self.revision)
        code = (config.get("auto_map") or {}).get("AutoTokenizer")
        name = config.get("tokenizer_class")
        if code and not self.trust_remote_code and not hasattr(transformers, str(name)):
            raise ValueError(
                f"model {self.path} reads its tokenizer by Python code of its own ({name}), which "
                "would run on this machine; read it, and set model.trust_remote_code=true if you "
                "trust it"
            )

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """The auto class of transformers that builds a model of this config."""
        tables = installed_tables()
        kind = Architecture.of(config.to_dict())
        name = kind.auto_class(tables) if tables is not None else None
        return getattr(transformers, name or CAUSAL)

    def _files(self) -> list[Path] | None:
        """The safetensors of a folder, [] where its weights are pickled; None: on the hub."""
        folder = Path(self.place)
        return weight_files(folder) if folder.is_dir() else None

    @property
    def _revision(self) -> str:
        return self.revision or "main"

    def _generation_config(self) -> GenerationConfig | None:
        """An empty one where the checkpoint's own cannot be read; None: leave it to the loader."""
        try:
            GenerationConfig.from_pretrained(self.place, revision=self._revision)
        except OSError:
            return None  # there is none
        except Exception as error:
            log.warning("generation_config.json of %s is left out: %s", self.path, cause(error))
            return GenerationConfig()
        return None


def dequantise_(config: PreTrainedConfig) -> None:
    """Have transformers turn packed weights back into numbers while it loads them."""
    for level in (config, config.get_text_config()):
        values = getattr(level, "quantization_config", None)
        if values is not None:
            settings = values if isinstance(values, dict) else values.to_dict()
            level.quantization_config = {**settings, "dequantize": True}
