from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.families import random_model
from torch import Tensor, nn

from sparsemend.data.base import UNLABELLED
from sparsemend.instruments import LiveBytes
from sparsemend.training import logits as module
from sparsemend.training.distillation import Distillation, Teacher
from sparsemend.training.logits import next_token_loss, predict

LARGE = 4096  # a vocabulary beside which 32 hidden dimensions are few


def batch(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Four windows of 16 tokens, of which a third is not labelled."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, vocabulary, (4, 16), generator=generator)
    unlabelled = torch.rand(4, 16, generator=generator) < 0.33
    return tokens, tokens.masked_fill(unlabelled, UNLABELLED)


def loss_and_gradients(model: nn.Module, *given_batch: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = next_token_loss(model, *given_batch)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return loss.detach(), gradients


def divide(monkeypatch: pytest.MonkeyPatch, *, rows: int, vocabulary: int) -> None:
    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * rows * vocabulary)


# gemma2 caps its logits, opt and gpt_neox tie or name their heads otherwise
@pytest.mark.parametrize(
    ("family", "headless"), [("llama", True), ("opt", True), ("gpt_neox", True), ("gemma2", False)]
)
def test_a_loss_in_parts_has_the_value_and_gradients_of_the_whole(
    family: str, headless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, labels) = random_model(family), batch(96)
    whole, wanted = loss_and_gradients(model, tokens, labels)
    divide(monkeypatch, rows=7, vocabulary=96)
    with torch.no_grad():
        assert (predict(model, tokens).head is not None) == headless
        assert torch.allclose(next_token_loss(model, tokens, labels), whole, rtol=1e-6)
    loss, gradients = loss_and_gradients(model, tokens, labels)
    assert torch.allclose(loss, whole, rtol=1e-6)
    # sums of up to 60 fp32 terms in another order, through three blocks; some are exactly 0 but for
    # rounding (a bias of keys)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for gradient, same in zip(gradients, wanted, strict=True):
        assert (gradient - same).abs().max() <= 1e-5 * max(largest / 100, float(same.abs().max()))
    assert "forward" not in vars(model.get_output_embeddings())


def test_logits_of_all_positions_are_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, labels) = random_model("llama", vocab_size=LARGE), batch(LARGE)
    model.requires_grad_(False)
    model.model.layers.requires_grad_(True)

    def peak() -> int:
        held = list(model.parameters())
        with LiveBytes(held) as live:
            base = live.live
            loss_and_gradients(model, tokens, labels)
        return live.peak - base

    one = 4 * tokens.numel() * LARGE
    assert peak() > 2 * one
    divide(monkeypatch, rows=4, vocabulary=LARGE)
    assert peak() < 0.75 * one  # half of it activations


def test_torch_sees_on_which_device_a_part_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By tensors among the arguments alone; else an autocast that is not CUDA's would be off."""
    recomputed: list[tuple[Any, ...]] = []

    def note(function: Callable[..., Tensor], *arguments: Any, **_: Any) -> Tensor:
        recomputed.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(module, "checkpoint", note)
    divide(monkeypatch, rows=40, vocabulary=96)
    next_token_loss(random_model("llama"), *batch(96))
    assert len(recomputed) == 2
    assert all(any(isinstance(x, Tensor) for x in arguments) for arguments in recomputed)


def test_windows_without_a_label_give_a_loss_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the whole does: the step's sum leaves it out, and every gradient of it is there."""
    model, (tokens, _) = random_model("llama"), batch(96)
    divide(monkeypatch, rows=7, vocabulary=96)
    loss = next_token_loss(model, tokens, torch.full_like(tokens, UNLABELLED))
    assert loss.isnan()
    (loss.nan_to_num() * 0).backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


class Scaling(nn.Module):
    """A model that changes what its head gives, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(96, 8), nn.Linear(8, 96)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits = self.head(self.embedding(input_ids))
        logits /= 3
        return SimpleNamespace(logits=logits)


def test_a_head_whose_output_is_changed_in_place_runs_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, (tokens, labels) = Scaling(), batch(96)
    whole = next_token_loss(model, tokens, labels)
    divide(monkeypatch, rows=7, vocabulary=96)
    assert predict(model, tokens).head is None
    assert torch.allclose(next_token_loss(model, tokens, labels), whole, rtol=1e-6)


def test_a_look_at_the_head_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the draws of dropout, nor in a head whose forward somebody has replaced."""
    model, (tokens, labels) = random_model("opt", dropout=0.5).train(), batch(96)
    head, calls = model.get_output_embeddings(), []
    plain = head.forward

    def replaced(states: Tensor) -> Tensor:
        calls.append(len(states))
        return plain(states)

    head.forward = replaced
    divide(monkeypatch, rows=40, vocabulary=96)
    draws = []
    for _ in range(2):  # the second has been seen
        torch.manual_seed(0)
        draws.append(next_token_loss(model, tokens, labels).item())
    assert draws[0] == draws[1]
    assert head.forward is replaced
    assert set(calls) == {40, 24}


def test_a_first_loss_may_be_measured_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, labels) = random_model("llama"), batch(96)
    whole = next_token_loss(model, tokens, labels)
    divide(monkeypatch, rows=40, vocabulary=96)
    with torch.inference_mode():
        assert torch.allclose(next_token_loss(model, tokens, labels), whole, rtol=1e-6)
    loss_and_gradients(model, tokens, labels)  # nothing is left that could not be written to


def test_a_compiled_model_is_not_compiled_anew_for_another_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (tokens, _) = random_model("llama"), batch(96)
    divide(monkeypatch, rows=40, vocabulary=96)
    model._compiled_call_impl = model._call_impl
    assert predict(model, tokens).head is None


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_distillation_in_parts_is_distillation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Distillation(
        weight=0.7, temperature=2.0, hidden_weight=0.5, teacher_dtype=None, teacher_device=None
    )
    teacher = Teacher(settings, lambda: random_model(family, seed=1))
    teacher.prepare(torch.device("cpu"))
    student, (tokens, labels) = random_model(family), batch(96)
    results = []
    for rows in (None, 7):
        if rows is not None:
            divide(monkeypatch, rows=rows, vocabulary=96)
        student.zero_grad()
        loss = teacher(student, tokens, labels)
        loss.total.backward()
        results.append((loss, student.model.layers[0].mlp.up_proj.weight.grad.clone()))
    (whole, wanted), (parts, gradient) = results
    assert torch.allclose(parts.total, whole.total, rtol=1e-6)
    assert parts.parts.keys() == whole.parts.keys()
    for name, value in whole.parts.items():
        assert torch.allclose(parts.parts[name], value, rtol=2e-6)
    assert (gradient - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_teachers_logits_in_parts_are_of_its_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the autocast is under which its student computes."""
    settings = Distillation(
        weight=1.0, temperature=1.0, hidden_weight=0.0, teacher_dtype=None, teacher_device=None
    )
    teacher, (tokens, _) = Teacher(settings, lambda: random_model("llama", seed=1)), batch(96)
    teacher.prepare(torch.device("cpu"))
    with torch.no_grad():
        whole = teacher.model(input_ids=tokens, use_cache=False).logits.flatten(0, 1)
    divide(monkeypatch, rows=40, vocabulary=96)
    with torch.autocast("cpu", torch.bfloat16):
        logits = teacher._logits(teacher._predictions(tokens), slice(3, 8))
    assert torch.allclose(logits, whole[3:8], rtol=1e-5, atol=1e-6)
