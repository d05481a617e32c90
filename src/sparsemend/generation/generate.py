"""Generates by transformers' own `generate`, writes text as it comes, and takes the time.

Prefill is what passes until the first new token is there, decode what passes from it to the last
one: with the cache, the choice of tokens and the decoding of text, as somebody who waits sees them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from sparsemend.errors import blame
from sparsemend.generation.opened import Opened
from sparsemend.generation.settings import Sampling


class TimedText(TextStreamer):
    """Hands text on as it comes, and notes when each token came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.prompt = 0
        self.times = [perf_counter()]  # of the start, then of every new token

    def put(self, value: Tensor) -> None:
        if self.next_tokens_are_prompt:
            self.prompt = value.shape[-1]
        else:
            self.times.append(perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)

    @property
    def begun(self) -> bool:
        """Whether a new token is there."""
        return len(self.times) > 1

    def rates(self) -> str:
        """Tokens, seconds and tokens per second of prefill and decode, in a line, once begun."""
        started, *times = self.times
        parts = [_rate("prefill", self.prompt, times[0] - started)]
        if len(times) > 1:
            parts.append(_rate("decode", len(times) - 1, times[-1] - times[0]))
        return "  ".join(parts)


class CheckFinite(LogitsProcessor):
    """Refuses logits that are not finite, of which the likeliest token means nothing."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not scores.max().isfinite():  # a maximum hands a NaN on; a token that is barred is -inf
            raise ValueError(
                f"{self.path} gives logits that are not finite after {input_ids.shape[1]} tokens, "
                "so its weights are damaged; copy it again, or export it again"
            )
        return scores


def generate(opened: Opened, prompt: Tensor, sampling: Sampling, streamer: TimedText) -> None:
    """Have the streamer write the text after a prompt (1, T), as it comes.

    Raises ValueError in one line where the model, or what its generation config asks for, fails.
    """
    torch.manual_seed(sampling.seed)
    config = generation_config(opened, prompt.shape[1], sampling)
    model: Any = opened.model
    remedy = "see what its generation_config.json asks for, and try --greedy"
    with torch.inference_mode(), blame(f"{opened.place.path} cannot generate", remedy):
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            logits_processor=LogitsProcessorList([CheckFinite(opened.place.path)]),
            tokenizer=opened.tokenizer,  # for the stop strings of a generation config
            streamer=streamer,
        )


def generation_config(opened: Opened, prompt: int, sampling: Sampling) -> GenerationConfig:
    """The folder's generation config with what was asked for, within the model's positions."""
    config = copy.deepcopy(opened.model.generation_config)
    assert isinstance(config, GenerationConfig)
    room = opened.room(prompt)
    config.max_length = None
    config.max_new_tokens = sampling.max_new_tokens
    if room is not None:
        config.max_new_tokens = min(room, sampling.max_new_tokens)
    config.use_cache = True
    config.num_beams = config.num_return_sequences = 1  # one text, which is written as it comes
    config.return_dict_in_generate = False
    if config.eos_token_id is None:
        config.eos_token_id = opened.tokenizer.eos_token_id
    if config.pad_token_id is None:  # nothing is padded, but `generate` would say that it has none
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    drawn = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
    if sampling.greedy:
        config.do_sample = False
        drawn = {**dict.fromkeys(drawn), "typical_p": None, "min_p": None}
    elif any(value is not None for value in drawn.values()):
        config.do_sample = True
        drawn = {name: value for name, value in drawn.items() if value is not None}
    else:
        drawn = {}
    for name, value in drawn.items():
        setattr(config, name, value)
    return config


def _rate(part: str, tokens: int, seconds: float) -> str:
    return f"{part} {tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.1f} tokens/s"
