"""Calibration windows as the pruning papers draw them, RNG draw for RNG draw.

Python's `random.Random(seed)` is consumed exactly as in the SparseGPT/Wanda loaders (Frantar and
Alistarh 2023, arXiv 2301.00774; Sun et al. 2024, arXiv 2306.11695), so the same documents,
tokenizer, length and seed give the same windows: a rejected document costs one draw, draws are
with replacement, and the very last token of a document is never used.  With a BOS token a window
begins with it, at the same place as without.  `key` is that of the source's section, for messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsemend.data.base import window_at


def from_documents(
    documents: Sequence[str],
    encode: Callable[[str], Tensor],
    *,
    samples: int,
    seqlen: int,
    seed: int,
    bos: int | None = None,
    key: str = "data",
) -> Tensor:
    """C4 protocol: windows (samples, seqlen) from documents strictly longer than `seqlen` tokens.

    Raises ValueError when no document is long enough (the published loop would never end).
    """
    rng = random.Random(seed)
    tokens: dict[int, Tensor] = {}
    any_long_enough, rows = False, []
    for _ in range(samples):
        while True:
            index = rng.randint(0, len(documents) - 1)
            if index not in tokens:
                tokens[index] = encode(documents[index])
            ids = tokens[index]
            if ids.numel() > seqlen:
                any_long_enough = True
                break
            if not any_long_enough and len(tokens) == len(documents):
                longest = max(t.numel() for t in tokens.values())
                raise ValueError(
                    f"no calibration document is longer than {key}.seqlen={seqlen} tokens "
                    f"(longest: {longest}); lower {key}.seqlen below {longest}"
                )
        start = rng.randint(0, ids.numel() - seqlen - 1)
        rows.append(window_at(ids, start, seqlen, bos=bos))
    return torch.stack(rows)


def from_stream(
    ids: Tensor,
    *,
    samples: int,
    seqlen: int,
    seed: int,
    bos: int | None = None,
    key: str = "data",
) -> Tensor:
    """WikiText-2 protocol: windows (samples, seqlen) at uniform starts in one token stream (n,).

    Raises ValueError when the stream has no more than `seqlen` tokens.
    """
    if ids.numel() <= seqlen:
        raise ValueError(
            f"the calibration text has {ids.numel()} tokens; sampling windows of "
            f"{key}.seqlen={seqlen} needs at least {seqlen + 1}; give more text or lower "
            f"{key}.seqlen"
        )
    rng = random.Random(seed)
    starts = [rng.randint(0, ids.numel() - seqlen - 1) for _ in range(samples)]
    return torch.stack([window_at(ids, s, seqlen, bos=bos) for s in starts])
