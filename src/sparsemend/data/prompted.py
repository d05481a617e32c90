"""The shared part of prompted sources: examples to train on, ordinary text to prune on.

Papers that repair on instructions prune and measure on plain text (C4 and WikiText-2).  So such a
source holds another one, `text`, which gives calibration and test windows; its own examples are
what trained repair reads, and the task that evaluation reports besides the text's perplexity.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import (
    DataSource,
    Examples,
    adopt_text_,
    bos_token,
    fingerprint_texts,
)
from sparsemend.data.examples import Wording, encode_examples, examples
from sparsemend.data.prompts import Prompted
from sparsemend.data.sampling import from_stream

SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class PromptedSource(DataSource):
    """Examples of at most `seqlen` tokens beside a text whose windows have a length of their own.

    mask_prompt: leave the prompt out of the loss of train and validation.  packing: several train
    examples to a window.  bos: every example begins with BOS, where the tokenizer adds none too.
    chat_template: examples are conversations as the tokenizer's template writes them.
    calibration_from: `text`, or `train` for windows over the training examples, end to end.
    """

    name: str
    seqlen: int
    calibration_samples: int
    mask_prompt: bool
    packing: bool
    bos: bool
    chat_template: bool
    calibration_from: str
    text: DataSource

    def __post_init__(self) -> None:
        adopt_text_(self, self.text)

    def calibrates_on(self) -> str:
        return self.calibration_from

    @abstractmethod
    def examples(self, split: str) -> Sequence[Prompted]:
        """The examples of train, validation or test, in a fixed order; test may have none."""

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        """Windows of the text, of the text's own length, or of the training examples."""
        if self.calibration_from == "text":
            return self.text.calibration(tokenizer, seed=seed)
        train = encode_examples(
            self.examples("train"),
            tokenizer,
            seqlen=sys.maxsize,  # windows lie over whole examples
            mask_prompt=False,
            wording=self._wording(tokenizer),
        )
        ids = [token for example in train for token in example.tokens]
        return from_stream(
            torch.tensor(ids),
            samples=self.calibration_samples,
            seqlen=self.seqlen,
            seed=seed,
            bos=bos_token(tokenizer, self.bos),
        )

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return self._examples(tokenizer, "train", packing=self.packing)

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Validation windows of one example each, even where train is packed."""
        return self._examples(tokenizer, "validation")

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        """The text's own test windows: the perplexity that pruning papers report."""
        return self.text.test(tokenizer)

    def task(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples | None:
        """The test examples with labelled answers, whatever the training loss is; None if none.

        One measure for every way of training: how well answers are predicted given the prompt.
        """
        return self._examples(tokenizer, "test", mask=True) if self.examples("test") else None

    def fingerprint(self) -> str:
        """SHA-256 of every example's prompt and answer by split, then of the text's fingerprint."""
        return fingerprint_texts(self._texts())

    def framing(self) -> Mapping[str, bool]:
        """How texts became windows: the examples, where the text does not say its own."""
        inner = self.text.framing()
        return {"bos": self.bos, **inner, "chat_template": self.chat_template}

    def _texts(self) -> Iterator[str]:
        for split in SPLITS:
            yield split
            for example in self.examples(split):
                yield example.prompt
                yield example.answer
        yield self.text.fingerprint()

    def _examples(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        split: str,
        *,
        mask: bool = False,
        packing: bool = False,
    ) -> Examples:
        return examples(
            self.examples(split),
            tokenizer,
            seqlen=self.seqlen,
            mask_prompt=self.mask_prompt or mask,
            packing=packing,
            what=split,
            wording=self._wording(tokenizer),
        )

    def _wording(self, tokenizer: PreTrainedTokenizerBase | None) -> Wording:
        return Wording(bos=bos_token(tokenizer, self.bos), chat=self.chat_template)
