"""A model whose linears are marked as `prunable.include` and `prunable.exclude` say."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.choice import choose_, report_choice
from sparsemend.config.prunable import PrunableNames
from sparsemend.layout.names import name_linears_
from sparsemend.model import ModelSource


class ChosenLinears(ModelSource):
    """Another source's model, of which some linears stay dense each time it is loaded."""

    def __init__(self, source: ModelSource, prunable: PrunableNames) -> None:
        self.source, self.prunable, self.reported = source, prunable, False
        self.name, self.context_length = source.name, source.context_length

    def load(self, *, seed: int) -> PreTrainedModel:
        return self._choose_in(self.source.load(seed=seed))

    def _choose_in(self, model: PreTrainedModel) -> PreTrainedModel:
        name_linears_(model)
        choose_(model, self.prunable)
        if not self.reported:  # a run may load its dense model several times
            report_choice(model, self.prunable)
            self.reported = True
        return model

    def open_streamed(self, *, folder: Path | None) -> PreTrainedModel:
        return self._choose_in(self.source.open_streamed(folder=folder))

    def weight_bytes(self) -> int | None:
        return self.source.weight_bytes()

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.source.tokenizer()

    def companions(self) -> list[Path]:
        return self.source.companions()

    def stored_as(self) -> str | None:
        return self.source.stored_as()
