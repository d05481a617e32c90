"""Sources with one text per split: each is one stream of tokens, by the WikiText-2 protocol.

A text is tokenised once as a whole; calibration windows are drawn from the stream of train, the
others are cut from theirs (Frantar and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import DataSource, Examples, bos_token, encode, windows
from sparsemend.data.sampling import from_stream


class StreamSource(DataSource):
    """Windows of a text per split."""

    bos: bool

    @abstractmethod
    def read(self, split: str) -> str:
        """The text of train, validation or test."""

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return self.draw(tokenizer, "train", seed=seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Windows of the stream that calibration draws from."""
        return Examples.of(self.cut(tokenizer, "train"))

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Windows cut in the same way as those of test, in whose place validation is read."""
        return Examples.of(self.cut(tokenizer, "validation"))

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self.cut(tokenizer, "test")

    def framing(self) -> Mapping[str, bool]:
        return {"bos": self.bos}

    def draw(self, tokenizer: PreTrainedTokenizerBase | None, split: str, *, seed: int) -> Tensor:
        """Windows (calibration_samples, seqlen) at random places of a split."""
        return from_stream(
            encode(tokenizer, self.read(split)),
            samples=self.calibration_samples,
            seqlen=self.seqlen,
            seed=seed,
            bos=bos_token(tokenizer, self.bos),
            key=self.key,
        )

    def cut(self, tokenizer: PreTrainedTokenizerBase | None, split: str) -> Tensor:
        """The windows (N, seqlen) of a split, in order."""
        bos = bos_token(tokenizer, self.bos)
        ids = encode(tokenizer, self.read(split))
        return windows(ids, self.seqlen, what=split, bos=bos, key=self.key)
