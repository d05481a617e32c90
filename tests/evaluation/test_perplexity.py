import math
from collections.abc import Callable

import pytest
import torch
from oracles import perplexity_oracle
from support.evaluation_inputs import evaluation_input
from support.families import FAMILIES, random_model
from support.streaming import streamed
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.evaluation.base import EvaluationInput
from sparsemend.evaluation.perplexity import CACHED, Perplexity, exponential
from sparsemend.instruments import LiveBytes
from sparsemend.names import METRIC, VALIDATION_METRIC


def perplexity(*, chunk: int = 16, limit: int = 10**9, validation: bool = False) -> Perplexity:
    return Perplexity(
        validation=validation,
        windows=None,
        examples=None,
        logits_fp32=True,
        chunk_tokens=chunk,
        logits_bytes=limit,
    )


def given(test: Tensor, *, batch: int = 8, validation: Examples | None = None) -> EvaluationInput:
    return evaluation_input(test, batch_size=batch, validation=validation or Examples.of(test[:0]))


def measured(family: str, tokens: Tensor, *, batch: int = 3, chunk: int = 7, limit: int = 10**9):
    evaluation = perplexity(chunk=chunk, limit=limit)
    given = evaluation_input(tokens, batch_size=batch)
    return evaluation(random_model(family), given)[METRIC]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_window_by_window_formula(family: str, tokens: Tensor) -> None:
    expected = perplexity_oracle.perplexity(random_model(family), tokens)
    # fp32 logits, batched against single: relative 1e-5 on the mean loss
    assert measured(family, tokens) == pytest.approx(expected, rel=1e-4)


def test_batching_and_chunking_do_not_change_it(tokens: Tensor) -> None:
    reference = measured("llama", tokens, batch=1, chunk=10**6)
    for batch, chunk, limit in [(8, 5, 10**9), (5, 64, 10**9), (8, 64, 1)]:
        assert measured("llama", tokens, batch=batch, chunk=chunk, limit=limit) == pytest.approx(
            reference, rel=1e-5
        )


def test_logits_are_limited_to_the_bytes_asked_for(tokens: Tensor) -> None:
    model = random_model("llama")
    seen: list[int] = []
    model.register_forward_hook(lambda m, a, out: seen.append(out.logits.nbytes))
    evaluation = perplexity(limit=2 * 24 * 96 * 4)
    given = evaluation_input(tokens, batch_size=8)
    evaluation(model, given)
    assert max(seen) == 2 * 24 * 96 * 4


def test_a_bf16_model_is_scored_on_fp32_logits(tokens: Tensor) -> None:
    model = random_model("llama").bfloat16()
    evaluation = perplexity()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    losses = evaluation.window_losses(logits, tokens)
    assert logits.dtype == torch.bfloat16
    expected = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(losses, expected.view(8, 23).mean(dim=1))


def test_a_loss_on_a_cpu_is_computed_on_what_the_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 70, 40_000, generator=generator)
    tokens = torch.randint(40_000, (2, 70), generator=generator)
    whole = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    sizes: list[int] = []
    copied: list[bool] = []
    upcast = Perplexity._token_losses

    def noted(self: Perplexity, part: Tensor, targets: Tensor) -> Tensor:
        sizes.append(4 * part.numel())
        copied.append(part.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr())
        return upcast(self, part, targets)

    monkeypatch.setattr(Perplexity, "_token_losses", noted)
    losses = perplexity(chunk=4096).window_losses(logits, tokens)
    assert len(sizes) == 4  # two of each window
    assert max(sizes) <= CACHED
    assert not any(copied)
    assert torch.equal(losses, whole.view(2, 69).mean(dim=1))


def test_a_collapsed_model_gives_infinity() -> None:
    assert exponential(1e6) == math.inf


def test_validation_is_measured_as_test_is_and_only_when_asked(tokens: Tensor) -> None:
    model, rows = random_model("llama"), Examples.of(tokens[:3])
    assert VALIDATION_METRIC not in perplexity()(model, given(tokens, validation=rows))
    found = perplexity(validation=True)(model, given(tokens, validation=rows))
    assert found[VALIDATION_METRIC] == measured("llama", tokens[:3])
    assert found[METRIC] == measured("llama", tokens, batch=8)


def test_validation_of_prompts_and_answers_counts_answers_alone(tokens: Tensor) -> None:
    model = random_model("llama")
    labels = tokens.clone()
    labels[0, :20] = UNLABELLED  # windows of unequal weight
    labels[1, :4] = UNLABELLED
    rows = Examples(tokens[:2], labels[:2])
    found = perplexity(validation=True)(model, given(tokens, validation=rows))
    with torch.no_grad():
        logits = model(input_ids=tokens[:2]).logits[:, :-1].flatten(0, 1)
    loss = F.cross_entropy(logits, labels[:2, 1:].flatten())
    assert found[VALIDATION_METRIC] == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize(("limits", "read"), [((2, None), 2), ((2, 4), 4), ((None, 3), 3)])
def test_examples_have_a_limit_where_one_is_given(
    tokens: Tensor, limits: tuple[int | None, int | None], read: int
) -> None:
    model, labels = random_model("llama"), tokens.clone()
    labels[:, :9] = UNLABELLED
    limited, whole = perplexity(validation=True), perplexity(validation=True)
    limited.windows, limited.examples = limits
    assert (limited.first_windows, limited.first_examples) == (limits[0], read)
    of_text = limited(model, given(tokens, validation=Examples.of(tokens)))
    first = given(tokens, validation=Examples.of(tokens[: limits[0]]))
    assert of_text[VALIDATION_METRIC] == whole(model, first)[VALIDATION_METRIC]
    of_answers = limited(model, given(tokens, validation=Examples(tokens, labels)))
    first = given(tokens, validation=Examples(tokens[:read], labels[:read]))
    assert of_answers[VALIDATION_METRIC] == whole(model, first)[VALIDATION_METRIC]


def test_a_streamed_model_has_the_same_losses(tokens: Tensor) -> None:
    labels = tokens.clone()
    labels[:, :9] = UNLABELLED
    rows = Examples(tokens[:5], labels[:5])

    def losses(model: PreTrainedModel) -> dict[str, Tensor]:
        inputs = evaluation_input(
            tokens, batch_size=3, task=rows, validation=rows, states_bytes=4 * 24 * 32 * 4
        )
        perplexity(validation=True, limit=2 * 24 * 96 * 4)(model, inputs)
        return inputs.window_losses

    whole, walked = losses(random_model("gemma2")), losses(streamed(random_model("gemma2")))
    assert whole.keys() == walked.keys()
    assert all(torch.equal(whole[name], walked[name]) for name in whole)


class KeepAll:
    """Keeps everything at once, and says when it was asked to."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, Tensor]] = {}
        self.asked: list[int] = []

    def begun(self, part: str) -> tuple[int, Tensor] | None:
        return self.rows.get(part)

    def keep(self, part: str, batches: int, rows: Callable[[], Tensor]) -> None:
        self.asked.append(batches)
        self.rows[part] = (batches, rows())

    def forget(self) -> None:
        self.rows.clear()


def test_a_streamed_measurement_is_kept_where_a_walk_ends(tokens: Tensor) -> None:
    kept = KeepAll()
    inputs = evaluation_input(
        tokens, batch_size=2, states_bytes=3 * 2 * 24 * 32 * 4, unfinished=kept
    )
    expected = perplexity()(streamed(random_model("llama")), inputs)
    assert kept.asked == [3, 4]
    kept.rows["test"] = (1, kept.rows["test"][1][:2])  # as a kill in the first walk's forwards
    assert perplexity()(streamed(random_model("llama")), inputs) == expected
    assert kept.asked == [3, 4, 4]


def test_the_logits_of_two_batches_are_never_held_at_once(tokens: Tensor) -> None:
    def peak(batches: int) -> int:
        model = random_model("llama", vocab_size=4096)
        inputs = evaluation_input(tokens[:batches], batch_size=1)
        with LiveBytes([]) as live:
            perplexity(chunk=4)(model, inputs)
        return live.peak

    logits = 24 * 4096 * 4
    assert peak(3) < peak(1) + logits / 2
