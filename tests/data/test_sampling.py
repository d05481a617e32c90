"""Sampling against a loop that follows the papers' text word by word."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sparsemend.data.sampling import from_documents, from_stream

DOCUMENTS = ["a" * 3, "bcdefgh", "i" * 4, "jklmn", "opqrstuvwxyz", "A" * 5, "BCDEFGHIJKL"]


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))


def published_loop(documents: list[str], samples: int, seqlen: int, seed: int) -> list[list[int]]:
    """Draw a document until one is longer than the window, then draw the start in it."""
    random.seed(seed)
    drawn = []
    for _ in range(samples):
        ids: list[int] = []
        while not len(ids) > seqlen:
            ids = list(documents[random.randint(0, len(documents) - 1)].encode())
        start = random.randint(0, len(ids) - seqlen - 1)
        drawn.append(ids[start : start + seqlen])
    return drawn


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_document_windows_are_those_of_the_published_loop(seed: int) -> None:
    ours = from_documents(DOCUMENTS, as_bytes, samples=40, seqlen=5, seed=seed)
    assert ours.tolist() == published_loop(DOCUMENTS, samples=40, seqlen=5, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_stream_windows_are_those_of_the_published_loop(seed: int) -> None:
    ids = torch.arange(100, 150)
    random.seed(seed)
    starts = [random.randint(0, 50 - 7 - 1) for _ in range(30)]
    ours = from_stream(ids, samples=30, seqlen=7, seed=seed)
    assert ours[:, 0].tolist() == [100 + start for start in starts]


def test_a_document_of_exactly_one_window_is_rejected() -> None:
    drawn = from_documents(["abcde", "vwxyz!"], as_bytes, samples=30, seqlen=5, seed=0)
    assert {bytes(row.tolist()) for row in drawn} == {b"vwxyz"}


def test_the_last_token_of_a_stream_is_never_drawn() -> None:
    drawn = from_stream(torch.arange(8), samples=200, seqlen=5, seed=0)
    assert set(drawn.flatten().tolist()) == set(range(7))


def test_fewer_windows_are_a_prefix_of_more() -> None:
    many = from_documents(DOCUMENTS, as_bytes, samples=20, seqlen=5, seed=3)
    few = from_documents(DOCUMENTS, as_bytes, samples=8, seqlen=5, seed=3)
    assert torch.equal(few, many[:8])


def test_each_document_is_tokenised_at_most_once() -> None:
    seen: list[str] = []

    def encode(text: str) -> Tensor:
        seen.append(text)
        return as_bytes(text)

    from_documents(DOCUMENTS, encode, samples=40, seqlen=5, seed=0)
    assert len(seen) == len(set(seen))


def test_sampling_leaves_the_global_random_state_alone() -> None:
    random.seed(7)
    before = random.getstate()
    from_documents(DOCUMENTS, as_bytes, samples=3, seqlen=5, seed=0)
    from_stream(torch.arange(20), samples=3, seqlen=5, seed=0)
    assert random.getstate() == before


def test_documents_that_are_all_too_short_are_refused_with_the_longest() -> None:
    with pytest.raises(ValueError, match=r"data\.seqlen=12 tokens \(longest: 12\)"):
        from_documents(DOCUMENTS, as_bytes, samples=1, seqlen=12, seed=0)


def test_a_stream_of_exactly_one_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 6 tokens.*needs at least 7"):
        from_stream(torch.arange(6), samples=1, seqlen=6, seed=0)
