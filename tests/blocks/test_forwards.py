"""The forwards of a model whose blocks lie elsewhere are those of the model in memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, random_model
from support.streaming import Elsewhere, streamed
from support.tiers import slow_but_for
from support.unusual import unusual_model
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.forwards import forwards
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.states import ON_DEVICE, StatesPlace
from sparsemend.instruments import LiveBytes

CPU = torch.device("cpu")
# a residual stream that becomes fp32, tuples, a list, arguments that depend on the tokens
UNUSUAL = ("mamba", "cpmant", "openai-gpt", "gemma3n_text", "gemma4_text", "jamba", "falcon")


def read(
    model: PreTrainedModel,
    batches: list[Tensor],
    *,
    states_bytes: int = 10**9,
    states: StatesPlace = ON_DEVICE,
) -> list[tuple[Tensor, bool]]:
    """(logits, settled) of every batch."""
    of = {"device": CPU, "states": states, "states_bytes": states_bytes}
    return list(forwards(model, batches, lambda n, x: x, **of))


def ragged(tokens: Tensor) -> list[Tensor]:
    """Batches of several sizes and lengths, one with zeros behind a shorter row."""
    batches = [tokens[:3], tokens[3:5, :17].clone(), tokens[5:7, :17], tokens[7:, :5]]
    batches[1][0, 9:] = 0
    return batches


def check_equal(make: Callable[[], PreTrainedModel], tokens: Tensor) -> None:
    with torch.no_grad():
        model = make()
        expected = [model(input_ids=batch, use_cache=False).logits for batch in ragged(tokens)]
    logits = [logits for logits, _ in read(streamed(make()), ragged(tokens))]
    assert all(map(torch.equal, logits, expected))


@pytest.mark.parametrize("family", slow_but_for(FAMILIES, ["llama", "gemma2"]))
def test_logits_have_the_bits_of_the_model_in_memory(family: str, tokens: Tensor) -> None:
    check_equal(partial(random_model, family), tokens)


@pytest.mark.parametrize("family", slow_but_for(UNUSUAL, ["openai-gpt"]))
def test_unusual_families_keep_their_bits_too(family: str, tokens: Tensor) -> None:
    check_equal(partial(unusual_model, family, dtype=torch.bfloat16), tokens)


def test_a_walk_takes_the_batches_whose_states_fit(tokens: Tensor) -> None:
    model = streamed(random_model("llama"))
    windows = list(tokens.split(2))
    residency = residency_of(model)
    assert isinstance(residency, Elsewhere)
    of_one = 2 * 24 * 32 * 4  # fp32 states of two windows
    pairs = read(model, windows, states_bytes=3 * of_one + 1)
    assert [settled for _, settled in pairs] == [False, False, True, True]
    first = 0  # to record what blocks are given, and for the model's own forwards
    walk = [first, 0, 1, 2, first]
    assert residency.visits == [(index, False) for index in [first, *walk, *walk]]
    assert residency.most == 1
    few = read(model, windows, states_bytes=1)
    assert all(settled for _, settled in few)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(pairs, few, strict=True))


def test_no_batches_are_no_walk() -> None:
    model = streamed(random_model("llama"))
    assert read(model, []) == []


def test_states_may_wait_in_files(tokens: Tensor, tmp_path: Path) -> None:
    held = read(streamed(random_model("llama")), ragged(tokens))
    filed = read(
        streamed(random_model("llama")), ragged(tokens), states=StatesPlace("file", tmp_path)
    )
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(held, filed, strict=True))
    assert not list(tmp_path.iterdir())


def peak(depth: int, windows: Tensor, *, states_bytes: int) -> int:
    """Bytes of living tensors while windows pass a streamed model one by one."""
    model = streamed(random_model("llama", num_hidden_layers=depth, intermediate_size=512))
    with LiveBytes([model.lm_head.weight]) as live:  # of which an operator returns a view
        for _ in forwards(
            model,
            windows.split(1),
            lambda n, x: None,
            device=CPU,
            states=ON_DEVICE,
            states_bytes=states_bytes,
        ):
            pass
    return live.peak


def test_memory_does_not_grow_with_depth_or_with_the_number_of_walks(tokens: Tensor) -> None:
    of_two = 2 * 24 * 32 * 4
    expected = peak(2, tokens[:2], states_bytes=of_two)
    assert peak(8, tokens[:2], states_bytes=of_two) == expected
    assert peak(2, tokens[:6], states_bytes=of_two) == expected
    assert peak(2, tokens[:6], states_bytes=10**9) > expected
