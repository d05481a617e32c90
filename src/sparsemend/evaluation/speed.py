"""Tokens per second and memory of a sparse model in the forms that torch offers, dense first.

Prefill is one forward over the prompt, decode the one-token steps after it, both with the cache.
All forms alternate in one process, every other round backwards, so that a drifting machine favours
none; figures are medians over the rounds, and a gain is the median of ratios within a round.  A
form must give the dense logits before it is timed.  A form without gain keeps its row, and one that
cannot serve this model is named in the log with the reason.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.evaluation.speed_forms import DENSE, FORMS, Product, form_builders
from sparsemend.masks import SparseLinear, sparse_linears
from sparsemend.measure import peak_bytes
from sparsemend.progress import track

log = logging.getLogger(__name__)

# relative to the norm of the logits; fp32 products differ in the order of their sums, half
# precision rounds every activation (2^-8 in bf16) and carries that through all blocks
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

Products = Mapping[str, Product]


@dataclass
class Timed:
    """Seconds of one form, one entry per round, and peak bytes of a prefill with decoding."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    peak: int = 0


@dataclass(kw_only=True)
class Speed(Evaluation):
    """`speed/FORM/...`: prefill, decode (tokens per second), their gains over dense, peak_bytes.

    A model without SparseLinears has no forms to compare and yields nothing.
    """

    forms: list[str]
    prompt_tokens: int
    new_tokens: int
    batch: int
    warmups: int
    rounds: int
    block: int

    def __post_init__(self) -> None:
        for name in self.forms:
            if name not in FORMS:
                raise ValueError(f"form {name!r} is not one of: {', '.join(FORMS)}")
        for key in ("prompt_tokens", "new_tokens", "batch", "rounds", "block"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluation.speed.{key}={getattr(self, key)} is not at least 1")

    @torch.inference_mode()
    def __call__(self, model: PreTrainedModel, given: EvaluationInput) -> dict[str, float]:
        linears = dict(sparse_linears(model))
        if not linears:
            return {}
        prompt = self._prompt(given.test).to(given.device)
        with warnings.catch_warnings():
            # the name of the cache argument that every family knows
            warnings.filterwarnings("ignore", message=".*past_key_values. is deprecated")
            agreeing = self._agreeing(model, self._forms(linears), prompt)
            return self._figures(self._timed(model, agreeing, prompt))

    def _prompt(self, test: Tensor) -> Tensor:
        """The first batch * prompt_tokens test tokens, as (batch, prompt_tokens)."""
        needed = self.batch * self.prompt_tokens
        if test.numel() < needed:
            raise ValueError(
                f"evaluation.speed needs {self.batch} x {self.prompt_tokens} test tokens, the data "
                f"has {test.numel()}; lower evaluation.speed.prompt_tokens"
            )
        return test.flatten()[:needed].view(self.batch, self.prompt_tokens)

    def _forms(self, linears: Mapping[str, SparseLinear]) -> dict[str, Products]:
        """Every form that can hold all linears; dense is always among them and first."""
        builders = form_builders(self.block)
        open_adapter = next((n for n, m in linears.items() if not m.holds_support), None)
        found: dict[str, Products] = {}
        for form in dict.fromkeys([DENSE, *self.forms]):
            if open_adapter is not None:
                if form != DENSE:
                    _refuse(form, f"{open_adapter} carries an adapter that is not folded in")
                    continue
                found[form] = {}  # the model as it is
                continue
            try:
                found[form] = {name: builders[form](_plain(m)) for name, m in linears.items()}
            except (ValueError, RuntimeError, NotImplementedError) as error:
                _refuse(form, str(error))
        return found

    def _agreeing(
        self, model: PreTrainedModel, forms: Mapping[str, Products], prompt: Tensor
    ) -> dict[str, Products]:
        """The forms that give the dense logits for the prompt; also the first warm-up of each."""
        agreeing: dict[str, Products] = {}
        expected = None
        for form, products in forms.items():
            try:
                with swapped(model, products):
                    logits = model(input_ids=prompt, use_cache=False).logits
            except (RuntimeError, NotImplementedError) as error:
                _refuse(form, str(error))
                continue
            if expected is None:
                expected = logits
            distance = float((logits - expected).float().norm() / expected.float().norm())
            if not distance <= TOLERANCE[model.dtype]:
                _refuse(form, f"its logits are {distance:.2g} of their norm off the dense ones")
                continue
            agreeing[form] = products
        return agreeing

    def _timed(
        self, model: PreTrainedModel, forms: Mapping[str, Products], prompt: Tensor
    ) -> dict[str, Timed]:
        timed = {form: Timed() for form in forms}
        for round_ in track(range(-self.warmups, self.rounds), "speed"):
            order = list(forms) if round_ % 2 == 0 else list(forms)[::-1]
            for form in order:
                with swapped(model, forms[form]):
                    prefill, decode = self._once(model, prompt)
                if round_ >= 0:
                    timed[form].prefill.append(prefill)
                    timed[form].decode.append(decode)
        for form, products in forms.items():
            with swapped(model, products):
                held = [*model.parameters(), *model.buffers()]
                held += [tensor for product in products.values() for tensor in product.stored]
                timed[form].peak = peak_bytes(
                    lambda: self._once(model, prompt), held, prompt.device
                )
        return timed

    def _once(self, model: PreTrainedModel, prompt: Tensor) -> tuple[float, float]:
        """Seconds of one prefill and of new_tokens greedy one-token steps after it."""
        started = _now(prompt.device)
        output = model(input_ids=prompt, use_cache=True)
        token = output.logits[:, -1:].argmax(dim=-1)
        filled = _now(prompt.device)
        for _ in range(self.new_tokens):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(dim=-1)
        return filled - started, _now(prompt.device) - filled

    def _figures(self, timed: Mapping[str, Timed]) -> dict[str, float]:
        tokens = {
            "prefill": self.batch * self.prompt_tokens,
            "decode": self.batch * self.new_tokens,
        }
        metrics: dict[str, float] = {}
        for form, measured in timed.items():
            line = []
            for part, count in tokens.items():
                seconds = getattr(measured, part)
                ratios = [
                    base / own
                    for base, own in zip(getattr(timed[DENSE], part), seconds, strict=True)
                ]
                rate, gain = count / statistics.median(seconds), statistics.median(ratios)
                metrics[f"speed/{form}/{part}"] = rate
                metrics[f"speed/{form}/{part}_gain"] = gain
                line.append(
                    f"{part} {rate:,.0f} tokens/s, {gain:.2f} x dense "
                    f"({min(ratios):.2f} - {max(ratios):.2f})"
                )
            metrics[f"speed/{form}/peak_bytes"] = measured.peak
            log.info("speed %-15s  %s  peak %.1f MiB", form, "  ".join(line), measured.peak / 2**20)
        return metrics


@contextmanager
def swapped(model: PreTrainedModel, products: Products) -> Iterator[None]:
    """`model` with these products in place of its linears, until the block ends."""
    before = {name: model.get_submodule(name) for name in products}
    for name, product in products.items():
        model.set_submodule(name, product)
    try:
        yield
    finally:
        for name, linear in before.items():
            model.set_submodule(name, linear)


def _plain(sparse: SparseLinear) -> nn.Linear:
    """The effective weight as an ordinary linear, as an export holds it."""
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(sparse.effective_weight(), requires_grad=False)
    linear.bias = sparse.bias
    return linear


def _refuse(form: str, reason: str) -> None:
    log.info("speed %-15s  not measured: %s", form, reason.strip().splitlines()[0])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
