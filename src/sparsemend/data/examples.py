"""Prompted examples as windows: tokenised whole, cut at the window, padded or packed.

    tokens  prompt answer EOS | padding          labels  - - answer EOS | - -

An example is tokenised as one text, so that it has the tokens a model meets when it reads it.
Padding stands on the right and carries no label: under causal attention nothing before it can see
it, so no attention mask is needed.  A text longer than the window is cut, and EOS is appended where
it fits (the cutoff of Alpaca-LoRA's training code, which LoRS, SPP and SQFT follow).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.data.prompts import Prompted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Tokens and labels of one example, at most a window long."""

    tokens: list[int]
    labels: list[int]
    length: int  # tokens of the whole text, EOS not counted

    @property
    def counts(self) -> bool:
        """Whether a loss finds a label; the first token of a window is never predicted."""
        return any(label != UNLABELLED for label in self.labels[1:])


def examples(
    prompted: Sequence[Prompted],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seqlen: int,
    mask_prompt: bool,
    packing: bool,
    what: str,
    bos: int | None = None,
) -> Examples:
    """Windows (N, seqlen) of the examples in order, without those whose answer was cut off whole.

    The log says how many were cut and dropped.  Raises ValueError where no example has an answer
    left.  `what` names them in log and message.  bos: a token that each begins with; None leaves
    that to the tokenizer.
    """
    if not prompted:
        raise ValueError(
            f"there are no {what} examples; give data.{what}, or hold some out of train"
        )
    encoded = encode_examples(prompted, tokenizer, seqlen=seqlen, mask_prompt=mask_prompt, bos=bos)
    kept = [example for example in encoded if example.counts]
    cut = sum(example.length > seqlen for example in encoded)
    if not kept:
        raise ValueError(
            f"data.seqlen={seqlen} cuts off the whole answer of every {what} example, so nothing "
            f"is left to learn; raise data.seqlen, up to {max(e.length for e in encoded)} tokens "
            "to keep them whole"
        )
    rows = pack(kept, seqlen) if packing else [[example] for example in kept]
    log.info(
        "%s  %s examples in %s windows of %d tokens  %s cut short  %s dropped",
        *(what, f"{len(kept):,}", f"{len(rows):,}", seqlen, f"{cut:,}"),
        f"{len(encoded) - len(kept):,}",
    )
    assert tokenizer is not None
    return stack(rows, seqlen, padding=tokenizer.eos_token_id)


def encode_examples(
    prompted: Sequence[Prompted],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seqlen: int,
    mask_prompt: bool,
    bos: int | None = None,
) -> list[Encoded]:
    """Each example's tokens and labels; a token that holds some of the answer is labelled."""
    if tokenizer is None or tokenizer.eos_token_id is None:
        missing = "the model folder has none" if tokenizer is None else "this one has none"
        raise ValueError(
            f"instructions need a tokenizer with an end-of-text token, and {missing}; add "
            "tokenizer files, or eos_token to tokenizer_config.json"
        )
    whole = _ids(tokenizer, [example.prompt + example.answer for example in prompted], bos)
    starts = [0] * len(whole)
    if mask_prompt:
        alone = _ids(tokenizer, [example.prompt for example in prompted], bos)
        starts = [shared_prefix(a, w) for a, w in zip(alone, whole, strict=True)]
    return [
        _encode(ids, start, tokenizer.eos_token_id, seqlen)
        for ids, start in zip(whole, starts, strict=True)
    ]


def _encode(ids: list[int], start: int, eos: int, seqlen: int) -> Encoded:
    ended = ids if ids[-1:] == [eos] else [*ids, eos]
    tokens = ended[:seqlen]
    labels = [UNLABELLED] * min(start, len(tokens)) + tokens[start:]
    return Encoded(tokens, labels, length=len(ids))


def shared_prefix(alone: Sequence[int], whole: Sequence[int]) -> int:
    """Number of leading tokens that the prompt tokenised alone shares with the whole text.

    All of the prompt's, unless a token of the whole text joins the end of the prompt to the answer.
    """
    pairs = enumerate(zip(alone, whole, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(alone), len(whole)))


def pack(encoded: Iterable[Encoded], seqlen: int) -> list[list[Encoded]]:
    """Put whole examples one after another, in order; start a window where the next does not fit.

    Attention crosses the borders inside a window: a later example sees the ones before it.
    """
    rows: list[list[Encoded]] = []
    room = 0
    for example in encoded:
        if len(example.tokens) > room:
            rows.append([])
            room = seqlen
        rows[-1].append(example)
        room -= len(example.tokens)
    return rows


def stack(rows: Sequence[Sequence[Encoded]], seqlen: int, *, padding: int) -> Examples:
    """Windows (N, seqlen), each of which holds the examples of one row and padding after them."""
    tokens = torch.full((len(rows), seqlen), padding, dtype=torch.int64)
    labels = torch.full((len(rows), seqlen), UNLABELLED, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids = [token for example in row for token in example.tokens]
        tokens[index, : len(ids)] = torch.tensor(ids)
        labels[index, : len(ids)] = torch.tensor([aim for example in row for aim in example.labels])
    return Examples(tokens, labels)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], bos: int | None) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return ids if bos is None else [row if row[:1] == [bos] else [bos, *row] for row in ids]
