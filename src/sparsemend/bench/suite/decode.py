"""Steps of a whole model, dense and packed: decoding, and the prefill of longer prompts.

New tokens follow a cache of `context` others, and the logits of the last are computed, as a step of
`generate` does.  Three models have the same weights, zeros included: torch's dense products; our
dense kernel in their place where tokens are few, torch where they are many; packed linears.  The
head is our dense kernel's in all three.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from sparsemend.bench.candidate import living
from sparsemend.bench.suite.base import BenchRow, Column, Section, Setting, Suite, schedule
from sparsemend.bench.suite.ours import GAINS, note_ratios, seconds
from sparsemend.blocks.find import prunable_linears
from sparsemend.engine.choice import kernels
from sparsemend.engine.convert import pack_linears_
from sparsemend.engine.library import Factor, Kernels
from sparsemend.terminal import track

BASELINE = "torch"
OURS = "our dense"
PACKED = "packed"
FEW = 8  # tokens up to which our dense kernel is tried: from here on torch's product is faster
# of the norm of the logits, in units of the dtype's rounding of every product on the way to them
ROUNDINGS = 2.0

COLUMNS = (
    *GAINS,
    Column("tokens/s", lambda row: f"{row['tokens'] / row['median_seconds']:.1f}"),
    Column("MiB", lambda row: f"{row['nbytes'] / 2**20:,.0f}"),
    Column("off", lambda row: f"{row['off']:.0e}"),
)


class OurDense(nn.Module):
    """x W^T by our dense kernel where tokens are few, by torch where they are many."""

    def __init__(self, linear: nn.Linear, chosen: Kernels) -> None:
        super().__init__()
        self.weight, self.chosen = linear.weight, chosen
        self.factor = Factor(None, linear.weight, None, None, None, linear.out_features)

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.reshape(-1, input.shape[-1])
        if len(tokens) > FEW:
            return F.linear(input, self.weight)
        output = self.chosen.multiply(tokens.contiguous(), self.factor)
        return output.view(*input.shape[:-1], self.factor.rows)


class Step:
    """A model behind a cache of tokens, which every step leaves as it was."""

    def __init__(self, model: PreTrainedModel, context: Tensor) -> None:
        self.model = model
        # transformers 5.24 renamed it, and warns of the former name
        named = "cache" in inspect.signature(model.forward).parameters
        self.keyword = "cache" if named else "past_key_values"
        self.cache = DynamicCache(config=model.config)
        self._logits(context)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits (1, vocabulary) after the last of `tokens` (1, T)."""
        logits = self._logits(tokens)
        self.cache.crop(-tokens.shape[1])
        return logits

    def _logits(self, tokens: Tensor) -> Tensor:
        cached = {self.keyword: self.cache}
        output = self.model(tokens, use_cache=True, logits_to_keep=1, **cached)
        logits: Tensor = output.logits[:, -1]
        return logits


@dataclass(kw_only=True)
class Decode(Suite):
    """Times steps of every number of new tokens in `lengths`, a table each."""

    lengths: list[int]
    context: int
    clock: str

    @torch.inference_mode()
    def sections(self, setting: Setting) -> Iterator[Section]:
        chosen = kernels()
        window = setting.tokens(1, self.context + max(self.lengths))
        models = _models(setting, window.shape[1], chosen)
        context = window[:, : self.context]
        steps = {label: Step(model, context) for label, model in models.items()}
        form = "torch" if chosen is None else chosen.form
        for length in self.lengths:
            tokens = window[:, self.context : self.context + length]
            rows = _checked_rows(steps, tokens)
            labels = [label for label, row in rows.items() if row.refused is None]
            for _, label in track(schedule(labels, setting.rounds), f"{length} tokens"):
                step = steps[label]
                rows[label].seconds.append(seconds(self.clock, lambda: step(tokens)))  # noqa: B023
            note_ratios(rows, OURS)
            yield Section(
                title=f"{length} tokens after {self.context}, kernels {form}",
                baseline=BASELINE,
                columns=COLUMNS,
                rows=list(rows.values()),
            )


def _models(setting: Setting, positions: int, chosen: Kernels | None) -> dict[str, PreTrainedModel]:
    """The dense model, and those that share its tensors, all but the packed ones."""
    dense = setting.model(positions)
    _sparsify_(dense, setting)
    models = {BASELINE: dense}
    if chosen is not None:
        models[OURS] = _twin(dense)
        for name, linear in prunable_linears(models[OURS]).items():
            models[OURS].set_submodule(name, OurDense(linear, chosen))
    models[PACKED] = _twin(dense)
    values = str(setting.dtype).removeprefix("torch.")
    pack_linears_(models[PACKED], values=values, least_sparsity=0.0)
    if chosen is not None:
        for model in models.values():
            head = model.get_output_embeddings()
            assert isinstance(head, nn.Linear)
            model.set_output_embeddings(OurDense(head, chosen))
    return models


def _sparsify_(model: PreTrainedModel, setting: Setting) -> None:
    """Zero random weights of the blocks' linears."""
    generator = torch.Generator().manual_seed(setting.seed)
    for linear in prunable_linears(model).values():
        dropped = torch.rand(linear.weight.shape, generator=generator) < setting.sparsity
        linear.weight.masked_fill_(dropped, 0)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own on the tensors of `model`."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in living(model)})


def _checked_rows(steps: Mapping[str, Step], tokens: Tensor) -> dict[str, BenchRow]:
    """Rows with their figures, refused where the logits are not the dense ones."""
    expected = steps[BASELINE](tokens).float()
    products = len(prunable_linears(steps[BASELINE].model))
    bound = ROUNDINGS * torch.finfo(steps[BASELINE].model.dtype).eps * products**0.5
    rows: dict[str, BenchRow] = {}
    for label, step in steps.items():
        off = float((step(tokens).float() - expected).norm() / expected.norm())
        held = {tensor.data_ptr(): tensor.nbytes for tensor in living(step.model)}
        figures = {"tokens": tokens.shape[1], "nbytes": sum(held.values()), "off": off}
        rows[label] = BenchRow(label=label, figures=figures)
        if not off <= bound:
            rows[label].refused = f"its logits are {off:.2g} of their norm off the dense ones"
    return rows
