"""Prompted examples as windows: tokenised whole, cut at the window, padded or packed.

    tokens  prompt answer EOS | padding          labels  - - answer EOS | - -

An example is tokenised as one text, so that it has the tokens a model meets when it reads it.
Padding stands on the right and carries no label: under causal attention nothing before it can see
it, so no attention mask is needed.  A text longer than the window is cut, and EOS is appended where
it fits (the cutoff of Alpaca-LoRA's training code, which LoRS, SPP and SQFT follow).  A chat
template, where one is asked for, writes prompt and answer as turns and ends them itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.data.chat_template import lacks_template
from sparsemend.data.prompts import Prompted
from sparsemend.errors import blame

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


@dataclass(frozen=True)
class Wording:
    """The tokens around prompt and answer.

    bos: the token that every example begins with; None leaves that to the tokenizer.  chat: the
    tokenizer's chat template says all of them.
    """

    bos: int | None = None
    chat: bool = False

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, prompted: Sequence[Prompted], *, answered: bool
    ) -> list[list[int]]:
        """Token ids of each prompt, with its answer or up to where that begins."""
        if self.chat:
            texts = render(tokenizer, prompted, answered=answered)
        else:
            texts = [e.prompt + e.answer if answered else e.prompt for e in prompted]
        ids: list[list[int]] = tokenizer(
            texts, return_attention_mask=False, verbose=False, add_special_tokens=not self.chat
        )["input_ids"]
        bos = self.bos
        return ids if bos is None else [row if row[:1] == [bos] else [bos, *row] for row in ids]


def render(
    tokenizer: PreTrainedTokenizerBase, prompted: Sequence[Prompted], *, answered: bool
) -> list[str]:
    """Each prompt as a user's turn, with the answer as the next one or up to where that begins.

    Raises ValueError where the tokenizer has no chat template, or one that refuses such turns.
    """
    if not tokenizer.chat_template:
        raise ValueError(lacks_template("data.chat_template"))
    conversations = [
        [{"role": "user", "content": example.prompt}]
        + [{"role": "assistant", "content": example.answer}] * answered
        for example in prompted
    ]
    with blame(
        "data.chat_template=true: the tokenizer's chat template", "set data.chat_template=false"
    ):
        texts: Any = tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=not answered
        )
    return list(texts)


def examples(
    prompted: Sequence[Prompted],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seqlen: int,
    mask_prompt: bool,
    packing: bool,
    what: str,
    wording: Wording | None = None,
) -> Examples:
    """Windows (N, seqlen) of the examples in order, without those whose answer was cut off whole.

    The log says how many were cut and dropped.  Raises ValueError where no example has an answer
    left.  `what` names them in log and message.
    """
    if not prompted:
        raise ValueError(
            f"there are no {what} examples; give data.{what}, or hold some out of train"
        )
    encoded = encode_examples(
        prompted, tokenizer, seqlen=seqlen, mask_prompt=mask_prompt, wording=wording
    )
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
    wording: Wording | None = None,
) -> list[Encoded]:
    """Each example's tokens and labels; a token that holds some of the answer is labelled.

    A conversation ends as its template says; other examples end with EOS.
    """
    wording = wording or Wording()
    if tokenizer is None or tokenizer.eos_token_id is None:
        missing = "the model folder has none" if tokenizer is None else "this one has none"
        raise ValueError(
            f"instructions need a tokenizer with an end-of-text token, and {missing}; add "
            "tokenizer files, or eos_token to tokenizer_config.json"
        )
    whole = wording.encode(tokenizer, prompted, answered=True)
    starts = [0] * len(whole)
    if mask_prompt:
        alone = wording.encode(tokenizer, prompted, answered=False)
        starts = [shared_prefix(a, w) for a, w in zip(alone, whole, strict=True)]
    end = [] if wording.chat else [tokenizer.eos_token_id]
    return [_encode(ids, start, end, seqlen) for ids, start in zip(whole, starts, strict=True)]


def _encode(ids: list[int], start: int, end: list[int], seqlen: int) -> Encoded:
    ended = ids if ids[-1:] == end else [*ids, *end]
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
