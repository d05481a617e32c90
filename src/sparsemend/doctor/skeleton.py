"""A model and windows that have shapes alone: config.json is read, and no weight, no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import attach_residency
from sparsemend.checkpoint.architecture import CAUSAL, Architecture, installed_tables
from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import DataSource, Examples
from sparsemend.doctor.ledger import Ledger
from sparsemend.layout.unfold import unfold_
from sparsemend.model import DTYPES, ModelSource, PretrainedModel, UntrainedModel
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.streamed import BlockFiles
from sparsemend.pretrained.streamed_blocks import Streamed, empty_
from sparsemend.run.debug import FirstBlocks


class Skeleton(ModelSource):
    """A source's model as its config describes it."""

    def __init__(self, source: PretrainedModel | UntrainedModel) -> None:
        self.source = source
        self.name, self.context_length = source.name, source.context_length

    def load(self, *, seed: int) -> PreTrainedModel:
        config, auto, settings = self._config()
        model = auto.from_config(config, dtype=DTYPES[self.source.dtype], **settings)
        model.config.use_cache = False
        unfold_(model)
        result: PreTrainedModel = model.eval()
        return result

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None

    def _config(self) -> tuple[Any, Any, dict[str, Any]]:
        source = self.source
        if isinstance(source, UntrainedModel):
            values = {**source.architecture, "vocab_size": source.vocabulary}
            config = AutoConfig.for_model(values.pop("model_type"), **values)
            return config, transformers.AutoModelForCausalLM, {}
        checkpoint = Checkpoint(
            path=source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        config = checkpoint.config()
        tables = installed_tables()
        kind = Architecture.of(config.to_dict())
        name = kind.auto_class(tables) if tables is not None else None
        settings: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
        if source.attention is not None:
            settings["attn_implementation"] = source.attention
        for level in (config, config.get_text_config()):
            vars(level).pop("quantization_config", None)
        return config, getattr(transformers, name or CAUSAL), settings


class FewBlocks(FirstBlocks):
    """The first blocks of a skeleton; what is made and cut off is not entered in the ledger.

    depth: the blocks of the whole model, once it was loaded.
    """

    def __init__(self, source: ModelSource, blocks: int, ledger: Ledger) -> None:
        super().__init__(source, blocks)
        self.ledger, self.depth = ledger, 0

    def load(self, *, seed: int) -> PreTrainedModel:
        with self.ledger.pause():
            model = self.source.load(seed=seed)
            self.depth = len(find_blocks(model)[1])
            model = self._shorten_(model)
        self._enter(model)
        return model

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        with self.ledger.pause():
            model = self.source.load(seed=0)
            self.depth = len(find_blocks(model)[1])
            model = self._shorten_(model)
            files = BlockShapes.of(model)
            for block in find_blocks(model)[1]:
                empty_(block, torch.device("cpu"))
        attach_residency(model, Streamed(model, files, folder))
        self._enter(model)
        return model.eval().requires_grad_(False)

    def _enter(self, model: PreTrainedModel) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_meta:
                self.ledger.note(tensor)


class BlockShapes(BlockFiles):
    """Stands for the files of blocks that are as large as these."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> BlockShapes:
        files = cls.__new__(cls)
        shapes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in block.state_dict().items()}
            for block in find_blocks(model)[1]
        ]
        object.__setattr__(files, "shapes", shapes)
        return files

    shapes: ClassVar[list[dict[str, tuple[torch.Size, torch.dtype]]]]

    @property
    def source(self) -> str:
        return "blank"

    def read(self, index: int) -> dict[str, Tensor]:
        return {n: torch.empty(s, dtype=dtype) for n, (s, dtype) in self.shapes[index].items()}


@dataclass
class BlankWindows(DataSource):
    """Windows of random tokens, as many and as long as a data source says, or fewer."""

    needs_tokenizer: ClassVar[bool] = False

    name: str
    seqlen: int
    calibration_samples: int
    vocabulary: int
    trained: int
    validated: int
    tested: int
    frames: Mapping[str, bool]

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return self._windows(self.calibration_samples, seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return Examples.of(self._windows(self.trained, 1))

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return Examples.of(self._windows(self.validated, 2))

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self._windows(self.tested, 3)

    def fingerprint(self) -> str:
        return "blank"

    def framing(self) -> Mapping[str, bool]:
        return self.frames

    def _windows(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(seed, count))
        return torch.randint(self.vocabulary, (count, self.seqlen), generator=generator)
