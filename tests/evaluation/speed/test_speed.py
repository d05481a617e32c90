"""Speed: forms give the dense logits, every row counts, refusals have reasons, nothing is left."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support import contracts
from support.evaluation_inputs import evaluation_input
from support.families import random_model
from torch import nn
from transformers import PreTrainedModel

from sparsemend.evaluation.base import EvaluationInput
from sparsemend.evaluation.speed import speed as speed_module
from sparsemend.evaluation.speed.forms import (
    FORMS,
    bits_and_values,
    bsr,
    csr,
    form_builders,
    semi_structured,
)
from sparsemend.evaluation.speed.parts import seconds_of_parts
from sparsemend.evaluation.speed.speed import Speed, with_products
from sparsemend.sparse.linear import SparseLinear, sparse_linears

DEFAULTS: dict[str, Any] = {
    "forms": list(FORMS),
    "prompt_tokens": 8,
    "new_tokens": 2,
    "batch": 2,
    "warmups": 0,
    "rounds": 3,
    "clock": "wall",
    "block": 8,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement leaves its rounds in the folder it is given, by default this one."""
    monkeypatch.chdir(tmp_path)


def speed(**settings: Any) -> Speed:
    return Speed(**(DEFAULTS | settings))


def given(**settings: Any) -> EvaluationInput:
    return evaluation_input(**({"test": contracts.windows(4), "batch_size": 1} | settings))


def sparse_linear(rows: int = 16, columns: int = 24) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(columns, rows)
    weight = torch.randn(rows, columns, generator=generator)
    linear.weight = nn.Parameter(weight * (torch.rand(rows, columns, generator=generator) < 0.5))
    return linear


@pytest.mark.parametrize("form", ["dense", "engine", "packed", "csr", "bsr"])
@pytest.mark.parametrize("shape", [(2, 5, 24), (1, 24), (24,)])
@torch.inference_mode()
def test_every_form_is_the_same_product(form: str, shape: tuple[int, ...]) -> None:
    linear = sparse_linear()
    product = form_builders(8)[form](linear)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    # 24 products summed in another order
    torch.testing.assert_close(product(inputs), linear(inputs), rtol=1e-5, atol=1e-6)


def test_what_a_form_stores_is_what_its_layout_says() -> None:
    linear = sparse_linear()
    nonzeros = int(linear.weight.count_nonzero())
    kept = csr(linear).stored
    assert sum(t.nbytes for t in kept) == nonzeros * (4 + 4) + 17 * 4 + 16 * 4  # rows + 1; bias
    bits = bits_and_values(
        linear
    ).stored  # 4 groups of 4 words, values and 64 zeros, 5 offsets, the bias
    assert sum(t.nbytes for t in bits) == 4 * 4 * 4 + (nonzeros + 64) * 4 + 5 * 8 + 16 * 4
    linear.weight.data[:8, :8] = 0
    blocks = bsr(linear, 8).stored
    assert sum(t.nbytes for t in blocks) == 5 * (64 * 4 + 4) + 3 * 4 + 16 * 4  # 5 of 6 blocks


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_every_form_is_measured_and_named(family: str) -> None:
    model = contracts.pruned_model(family=family)
    before = contracts.bits(model)
    found = speed()(model, given())
    for form in ("dense", "engine", "packed", "csr", "bsr"):
        assert found[f"speed/{form}/prefill"] > 0
        assert found[f"speed/{form}/decode"] > 0
        assert found[f"speed/{form}/peak_bytes"] > 0
    assert found["speed/dense/prefill_gain"] == found["speed/dense/decode_gain"] == 1
    assert not any("semi_structured" in name for name in found)  # a CPU has no such product
    contracts.assert_same_bits(contracts.bits(model), before)
    assert all(type(linear) is SparseLinear for _, linear in sparse_linears(model))


def test_figures_are_medians_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of dense 1 2 4 (prefill), csr 2 2 2: ratios 1/2, 1, 2."""
    clock = {"dense": iter([1.0, 2.0, 4.0]), "csr": iter([2.0, 2.0, 2.0])}
    order: list[str] = []

    def once(self: Speed, model: PreTrainedModel, prompt: torch.Tensor) -> tuple[float, float]:
        kind = type(model.get_submodule("model.layers.0.self_attn.q_proj")).__name__
        form = "csr" if kind == "MatrixProduct" else "dense"
        if len(order) < 6:
            order.append(form)
            return next(clock[form]), 1.0
        return 0.0, 0.0  # the pass that measures memory

    monkeypatch.setattr(Speed, "_once", once)
    found = speed(forms=["dense", "csr"])(contracts.pruned_model(), given())
    assert order == ["dense", "csr", "csr", "dense", "dense", "csr"]
    assert found["speed/dense/prefill"] == 16 / 2
    assert found["speed/csr/prefill"] == 16 / 2
    assert found["speed/csr/prefill_gain"] == 1
    assert found["speed/csr/decode"] == 4  # 2 prompts of 2 new tokens in a second


def test_a_form_with_other_logits_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(block: int) -> dict[str, Any]:
        def doubled(linear: nn.Linear) -> speed_module.Product:
            return speed_module.Product(linear.weight * 2, linear.bias, [])

        return form_builders(block) | {"csr": doubled}

    monkeypatch.setattr(speed_module, "form_builders", wrong)
    with caplog.at_level(logging.INFO):
        found = speed(forms=["csr"])(contracts.pruned_model(), given())
    assert "speed/csr/prefill" not in found
    assert "of their norm off the dense ones" in caplog.text


def test_forms_that_cannot_serve_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = speed(block=5)(contracts.pruned_model(), given(out=tmp_path, state="repaired"))
    assert {name.split("/")[1] for name in found} == {"dense", "engine", "packed", "csr"}
    assert "is not a multiple of the block, 5" in caplog.text
    assert "CUDA devices only" in caplog.text
    stored = json.loads((tmp_path / "speed" / "repaired.json").read_text())
    assert set(stored["not_measured"]) == {"bsr", "semi_structured"}
    assert len(stored["forms"]["csr"]["decode"]) == stored["rounds"] == 3
    for form in stored["forms"].values():
        assert form["off"] < 1e-5
        assert all(min(parts.values()) > 0 for parts in form["parts"])


def test_a_dense_model_has_nothing_to_compare() -> None:
    assert speed()(random_model("llama"), given()) == {}


def test_an_open_adapter_is_measured_dense_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = contracts.pruned_model()
    contracts.method_of("lora").repair(model, contracts.bench_for(tmp_path))
    with caplog.at_level(logging.INFO):
        found = speed()(model, given())
    assert {name.split("/")[1] for name in found} == {"dense"}
    assert "an adapter that is not folded in" in caplog.text


def test_a_bf16_model_is_measured() -> None:
    found = speed()(contracts.pruned_model().to(torch.bfloat16), given())
    assert found["speed/dense/decode"] > 0


def test_linears_return_when_measuring_fails() -> None:
    model = contracts.pruned_model()
    name, linear = next(sparse_linears(model))
    with pytest.raises(RuntimeError, match="stopped"), with_products(model, {name: csr(linear)}):
        raise RuntimeError("stopped")
    assert model.get_submodule(name) is linear


def test_the_parts_of_decode_are_those_of_its_modules(caplog: pytest.LogCaptureFixture) -> None:
    """A clock that goes on by 1 s at every look: two linears and a head of one each."""
    seconds = iter(map(float, range(100)))
    linears, head = [nn.Linear(2, 2), nn.Linear(2, 2)], nn.Linear(2, 2)
    x = torch.ones(1, 2)

    def work() -> None:
        for module in (*linears, head, nn.Linear(2, 2)):
            module(x)

    measured = seconds_of_parts(work, linears, head, lambda: next(seconds))
    assert (measured.linears, measured.head, measured.rest) == (2, 1, 4)
    assert measured.line() == "of decode: linears 29%, head 14%, rest 57%"
    assert not linears[0]._forward_hooks
    with caplog.at_level(logging.INFO):
        speed(forms=["packed"])(contracts.pruned_model(), given())
    assert "x dense" in caplog.text
    assert caplog.text.count("of decode: linears") == 2


def test_the_clock_of_a_thread_is_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match=r"clock=cpu is the time of one thread.*threads=1"):
        speed(clock="cpu")(contracts.pruned_model(), given())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert speed(clock="cpu", forms=["dense"])(contracts.pruned_model(), given())


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 x 33 test tokens, the data has 64"):
        speed(prompt_tokens=33)(contracts.pruned_model(), given())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"forms": ["coo"]}, "form 'coo' is not one of"), ({"rounds": 0}, "rounds=0 is not at least")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speed(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_two_four_products_are_the_same_product() -> None:
    linear = nn.Linear(128, 128, dtype=torch.bfloat16, device="cuda")
    keep = torch.tensor([True, True, False, False], device="cuda").repeat(128, 32)
    linear.weight.data.mul_(keep)
    inputs = torch.randn(64, 128, dtype=torch.bfloat16, device="cuda")
    # both round one fp32 sum to bf16
    torch.testing.assert_close(
        semi_structured(linear)(inputs), linear(inputs), rtol=2e-2, atol=1e-2
    )


def test_two_four_products_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="CUDA devices only"):
        semi_structured(sparse_linear())


def test_without_kernels_there_is_no_packed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "torch")
    with pytest.raises(ValueError, match="no kernels here"):
        bits_and_values(sparse_linear())


def test_a_packed_form_is_refused_for_float16() -> None:
    with pytest.raises(ValueError, match=r"model\.bfloat16"):
        bits_and_values(sparse_linear().half())
