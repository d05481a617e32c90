"""Answers prompts one after the other: text to standard output, rates to standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemend.generation.folder import ModelPlace
from sparsemend.generation.generate import TimedText, generate
from sparsemend.generation.opened import Opened, check_card, open_place
from sparsemend.generation.settings import Sampling
from sparsemend.terminal import note


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """How prompts are put.  chat: in the tokenizer's template, after `system` where it is given."""

    sampling: Sampling
    chat: bool
    system: str | None

    def answer(self, opened: Opened, tokens: Tensor) -> None:
        """Write the text that follows a prompt (1, T), and how fast it came, also if stopped."""
        room = opened.room(tokens.shape[1])
        if room is not None and room < self.sampling.max_new_tokens:
            note(f"{room} new tokens at most: the model has no more positions")
        streamer = TimedText(opened.tokenizer, write)
        try:
            generate(opened, tokens, self.sampling, streamer)
        except KeyboardInterrupt:
            streamer.end()
            raise
        finally:
            if streamer.begun:
                write("\n")
                note(f"{streamer.rates()}  ({opened.form})")


def speak(
    place: ModelPlace,
    prompts: Sequence[str],
    speaker: Speaker,
    *,
    dtype: str | None,
    device: str,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Open the model of a place and answer these prompts.

    dtype: float32 or bfloat16, None as it is stored.  device: cpu, cuda or cuda:N; raises
    ValueError where torch has none such.  threads: None as torch has them.
    """
    check_card(torch.device(device))
    if threads is not None:
        torch.set_num_threads(threads)
    named = None if dtype is None else getattr(torch, dtype)
    opened = open_place(
        place, dtype=named, device=torch.device(device), trust_remote_code=trust_remote_code
    )
    # all of them first: one that is refused is so before long work
    for tokens in [
        opened.tokens(text, chat=speaker.chat, system=speaker.system) for text in prompts
    ]:
        speaker.answer(opened, tokens)


def write(text: str) -> None:
    """Write to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
