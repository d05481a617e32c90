"""Tokens per second and memory of a sparse model in the forms that can be had, dense first.

Prefill is one forward over the prompt, decode the one-token steps after it, both with the cache.
All forms alternate in one process, every other round backwards, so that a drifting machine favours
none; figures are medians over the rounds, and a gain is the median of ratios within a round.  A
form must give the dense logits before it is timed.  A form without gain keeps its row; one that
cannot serve this model is named with the reason.  Every round is kept in speed/STATE.json.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.evaluation.speed.forms import DENSE, FORMS, Product, form_builders
from sparsemend.files import write_json
from sparsemend.instruments import peak_bytes
from sparsemend.names import SPEED
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.terminal import track

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
        self._refused: dict[str, str] = {}
        for name in self.forms:
            if name not in FORMS:
                raise ValueError(f"form {name!r} is not one of: {', '.join(FORMS)}")
        for key in ("prompt_tokens", "new_tokens", "batch", "rounds", "block"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluation.speed.{key}={getattr(self, key)} is not at least 1")

    @torch.inference_mode()
    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        linears = dict(sparse_linears(model))
        if not linears:
            return {}
        self._refused.clear()
        prompt = self._prompt(inputs.test).to(inputs.device)
        with warnings.catch_warnings():
            # the name of the cache argument that every family knows
            warnings.filterwarnings("ignore", message=".*past_key_values. is deprecated")
            agreeing = self._agreeing(model, self._forms(linears), prompt)
            timed = self._time_forms(model, agreeing, prompt)
        rounds = {form: asdict(measured) for form, measured in timed.items()}
        content = {**self.describe(), "forms": rounds, "not_measured": self._refused}
        write_json(inputs.out / SPEED / f"{inputs.state}.json", content)
        return self._figures(timed)

    def describe(self) -> dict[str, Any]:
        """The lengths that were timed, without which tokens per second mean little."""
        keys = ("prompt_tokens", "new_tokens", "batch", "warmups", "rounds", "block")
        return {key: getattr(self, key) for key in keys}

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
        forms: dict[str, Products] = {}
        for form in dict.fromkeys([DENSE, *self.forms]):
            if open_adapter is not None:
                if form != DENSE:
                    self._refuse(form, f"{open_adapter} carries an adapter that is not folded in")
                    continue
                forms[form] = {}  # the model as it is
                continue
            try:
                forms[form] = {name: builders[form](_plain(m)) for name, m in linears.items()}
            except (ValueError, RuntimeError, NotImplementedError) as error:
                self._refuse(form, str(error))
        return forms

    def _agreeing(
        self, model: PreTrainedModel, forms: Mapping[str, Products], prompt: Tensor
    ) -> dict[str, Products]:
        """The forms that give the dense logits for the prompt; also the first warm-up of each."""
        agreeing: dict[str, Products] = {}
        expected = None
        for form, products in forms.items():
            try:
                with with_products(model, products):
                    logits = model(input_ids=prompt, use_cache=False).logits
            except (RuntimeError, NotImplementedError) as error:
                self._refuse(form, str(error))
                continue
            if expected is None:
                expected = logits
            distance = float((logits - expected).float().norm() / expected.float().norm())
            if not distance <= TOLERANCE[model.dtype]:
                self._refuse(
                    form, f"its logits are {distance:.2g} of their norm off the dense ones"
                )
                continue
            agreeing[form] = products
        return agreeing

    def _time_forms(
        self, model: PreTrainedModel, forms: Mapping[str, Products], prompt: Tensor
    ) -> dict[str, Timed]:
        timed = {form: Timed() for form in forms}
        for round_ in track(range(-self.warmups, self.rounds), "speed"):
            order = list(forms) if round_ % 2 == 0 else list(forms)[::-1]
            for form in order:
                with with_products(model, forms[form]):
                    prefill, decode = self._once(model, prompt)
                if round_ >= 0:
                    timed[form].prefill.append(prefill)
                    timed[form].decode.append(decode)
        for form, products in forms.items():
            with with_products(model, products):
                held = [*model.parameters(), *model.buffers()]
                held += [tensor for product in products.values() for tensor in product.stored]
                timed[form].peak = peak_bytes(
                    lambda: self._once(model, prompt), held, prompt.device
                )
        return timed

    def _refuse(self, form: str, reason: str) -> None:
        self._refused[form] = reason.strip().splitlines()[0]
        log.info("speed %-15s  not measured: %s", form, self._refused[form])

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
                    base / elapsed
                    for base, elapsed in zip(getattr(timed[DENSE], part), seconds, strict=True)
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
def with_products(model: PreTrainedModel, products: Products) -> Iterator[None]:
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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
