"""The cost of the similarity of the blocks' inputs: streamed, against storing all those inputs.

`stored` does what LoSA's released code does: it keeps the inputs X_i of all L blocks and forms two
Gram matrices for each of the L^2 pairs.  `stored_once` stores too, but forms each Gram matrix once.
Both are plain implementations of their own; the floor is one pass of the blocks.  Peak memory is
the tensors' alone, the model's included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.bench.suite.base import PEAK_MEMORY, BenchRow, Section, Setting, Suite, schedule
from sparsemend.blocks.walk import Calibration
from sparsemend.instruments import peak_bytes, time_and_peak
from sparsemend.sparsity_schedule.rates.similarity import block_similarity, centre
from sparsemend.terminal import track

log = logging.getLogger(__name__)

FLOOR = "one pass"


@dataclass(kw_only=True)
class SimilaritySuite(Suite):
    """Times the three ways on `samples` sequences of `seqlen` tokens."""

    samples: int
    seqlen: int

    def sections(self, setting: Setting) -> Iterator[Section]:
        model = setting.model(self.seqlen)
        windows = setting.tokens(self.samples, self.seqlen)
        ways: dict[str, Callable[[], object]] = {
            FLOOR: lambda: one_pass(model, windows),
            "streamed": lambda: block_similarity(model, Calibration((windows,)), self.samples),
            "stored_once": lambda: similarity_of_stored(model, windows, pairwise=False),
            "stored": lambda: similarity_of_stored(model, windows, pairwise=True),
        }
        rows = {label: BenchRow(label=label) for label in ways}
        for label, row in rows.items():
            held = [*model.parameters(), *model.buffers()]
            row.figures["peak_bytes"] = peak_bytes(ways[label], held, setting.device)
        for _, label in track(schedule(list(rows), setting.rounds), "similarity"):
            seconds, _ = time_and_peak(ways[label], setting.device)
            rows[label].seconds.append(seconds)
            log.info("%-12s  %.2f s", label, seconds)
        title = f"{self.samples} x {self.seqlen} tokens"
        yield Section(title=title, baseline=FLOOR, columns=(PEAK_MEMORY,), rows=list(rows.values()))


@torch.no_grad()
def one_pass(model: PreTrainedModel, windows: Tensor) -> None:
    """Every block once over every sequence, the last one too."""
    *_, last = Calibration((windows,)).walk(model)
    last.outputs()


@torch.no_grad()
def similarity_of_stored(model: PreTrainedModel, windows: Tensor, *, pairwise: bool) -> Tensor:
    """The similarity C (L, L) from the stored inputs of every block."""
    features = [torch.cat(list(visit.inputs)) for visit in Calibration((windows,)).walk(model)]

    def centred_gram(index: int) -> Tensor:
        rows = features[index].float().flatten(1)
        return centre((rows @ rows.T).double())

    count = len(features)
    grams = [] if pairwise else [centred_gram(i) for i in range(count)]
    similarity = torch.empty(count, count, dtype=torch.float64)
    for i, j in product(range(count), repeat=2):
        one, other = (centred_gram(i), centred_gram(j)) if pairwise else (grams[i], grams[j])
        similarity[i, j] = (one * other).sum() / (one.norm() * other.norm())
    return similarity
