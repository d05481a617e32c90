"""Tokens per second and memory of a sparse model in the forms that can be had, dense first.

Prefill is one forward over the prompt, decode the one-token steps after it, both with the cache.
All forms alternate in one process, every other round backwards, so that a drifting machine favours
none; figures are medians over the rounds, and a gain is the median of ratios within a round.  A
form must give the dense logits before it is timed.  A form without gain keeps its row; one that
cannot serve this model is named with the reason.  Every round is kept in speed/STATE.json, and on a
CPU what the linears, the head and the rest take of some decodings after the rounds.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.evaluation.speed.figures import TimedForm, figures
from sparsemend.evaluation.speed.forms import DENSE, FORMS, Product, form_builders
from sparsemend.evaluation.speed.parts import seconds_of_parts
from sparsemend.files import write_json
from sparsemend.instruments import peak_bytes
from sparsemend.names import SPEED
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.terminal import track

log = logging.getLogger(__name__)

# relative to the norm of the logits; fp32 products differ in the order of their sums, half
# precision rounds every activation (2^-8 in bf16) and carries that through all blocks
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

CLOCKS = {"wall": perf_counter, "cpu": thread_time}
PART_ROUNDS = 3  # decodings of each form in which the parts are timed; their median is logged

Products = Mapping[str, Product]


@dataclass(frozen=True)
class Cached:
    """The next token (B, 1) after a prompt, and the cache of the tokens before it."""

    token: Tensor
    cache: Any


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
    clock: str
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
        if self.clock == "cpu" and (torch.get_num_threads() > 1 or inputs.device.type != "cpu"):
            raise ValueError(
                "evaluation.speed.clock=cpu is the time of one thread on the host; set "
                "hardware.threads=1 there, or evaluation.speed.clock=wall"
            )
        prompt = self._prompt(inputs.test).to(inputs.device)
        with warnings.catch_warnings():
            # the name of the cache argument that every family knows
            warnings.filterwarnings("ignore", message=".*past_key_values. is deprecated")
            agreeing, off = self._agreeing(model, self._forms(linears), prompt)
            timed = {form: TimedForm(off[form]) for form in agreeing}
            self._time_forms(model, agreeing, prompt, timed)
            if prompt.device.type == "cpu":
                self._time_parts(model, agreeing, prompt, timed)
        rounds = {form: asdict(measured) for form, measured in timed.items()}
        content = {**self.describe(), "forms": rounds, "not_measured": self._refused}
        write_json(inputs.out / SPEED / f"{inputs.state}.json", content)
        tokens = {"prefill": prompt.numel(), "decode": self.batch * self.new_tokens}
        return figures(timed, tokens)

    def describe(self) -> dict[str, Any]:
        """The lengths that were timed, without which tokens per second mean little."""
        keys = ("prompt_tokens", "new_tokens", "batch", "warmups", "rounds", "clock", "block")
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
    ) -> tuple[dict[str, Products], dict[str, float]]:
        """The forms that give the dense logits for the prompt, and how far each is off.

        Also the first warm-up of each.
        """
        agreeing: dict[str, Products] = {}
        off: dict[str, float] = {}
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
            agreeing[form], off[form] = products, distance
        return agreeing, off

    def _time_forms(
        self,
        model: PreTrainedModel,
        forms: Mapping[str, Products],
        prompt: Tensor,
        timed: Mapping[str, TimedForm],
    ) -> None:
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

    def _time_parts(
        self,
        model: PreTrainedModel,
        forms: Mapping[str, Products],
        prompt: Tensor,
        timed: Mapping[str, TimedForm],
    ) -> None:
        """Note where the time of decodings goes, in turn, under hooks that the rounds lack."""
        for _ in range(PART_ROUNDS):
            for form, products in forms.items():
                with with_products(model, products):
                    output = self._prefill(model, prompt)
                    decode = partial(self._decode, model, output)
                    head = model.get_output_embeddings()
                    now = CLOCKS[self.clock]
                    parts = seconds_of_parts(decode, products.values(), head, now)
                    timed[form].parts.append(parts)

    def _refuse(self, form: str, reason: str) -> None:
        self._refused[form] = reason.strip().splitlines()[0]
        log.info("speed %-15s  not measured: %s", form, self._refused[form])

    def _once(self, model: PreTrainedModel, prompt: Tensor) -> tuple[float, float]:
        """Seconds of one prefill and of new_tokens greedy one-token steps after it."""
        started = self._now(prompt.device)
        output = self._prefill(model, prompt)
        filled = self._now(prompt.device)
        self._decode(model, output)
        return filled - started, self._now(prompt.device) - filled

    def _now(self, device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return CLOCKS[self.clock]()

    def _prefill(self, model: PreTrainedModel, prompt: Tensor) -> Cached:
        output = model(input_ids=prompt, use_cache=True)
        return Cached(output.logits[:, -1:].argmax(dim=-1), output.past_key_values)

    def _decode(self, model: PreTrainedModel, before: Cached) -> None:
        token, cache = before.token, before.cache
        for _ in range(self.new_tokens):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1:].argmax(dim=-1), output.past_key_values


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
