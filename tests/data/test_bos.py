"""Windows that begin with the BOS token, and the models for which that is the default."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import compose
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sparsemend.data.base import bos_token, window_at, windows
from sparsemend.data.bos import NEEDS_BOS, asks_for_auto, needs_bos, resolve_bos_
from sparsemend.data.hub_files import document_windows
from sparsemend.data.sampling import from_documents, from_stream
from sparsemend.data.text import LocalText

BOS = 0
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
Tokenizer = PreTrainedTokenizerFast


def expected(ids: list[int], seqlen: int) -> list[list[int]]:
    """The windows of a stream, written without the code under test."""
    rows: list[list[int]] = []
    while ids:
        row = ids[:seqlen] if ids[0] == BOS else [BOS, *ids[: seqlen - 1]]
        ids = ids[seqlen if ids[0] == BOS else seqlen - 1 :]
        rows += [row] if len(row) == seqlen else []
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_every_window_begins_with_one_bos_and_no_token_is_lost(seed: int) -> None:
    draw = random.Random(seed)
    ids = [draw.choice([BOS, *range(1, 9)]) for _ in range(draw.randint(7, 60))]
    rows = windows(torch.tensor(ids), 5, what="test", bos=BOS).tolist()
    assert rows == expected(ids, 5)


def test_windows_of_a_stream_without_bos_are_a_token_shorter_each() -> None:
    rows = windows(torch.arange(1, 12), 4, what="test", bos=BOS)
    assert rows.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7, 8, 9]]


def test_a_bos_that_is_there_is_not_doubled() -> None:
    ids = torch.tensor([BOS, 1, 2, BOS, 3, 4])
    assert windows(ids, 3, what="test", bos=BOS).tolist() == [[BOS, 1, 2], [BOS, 3, 4]]


def test_off_the_windows_are_those_of_the_papers() -> None:
    ids = torch.arange(11)
    assert torch.equal(windows(ids, 4, what="test", bos=None), ids[:8].view(2, 4))


def test_calibration_draws_the_same_places_with_and_without() -> None:
    ids = torch.arange(1, 40)
    settings: dict[str, Any] = {"samples": 9, "seqlen": 6, "seed": 3}
    off, on = (from_stream(ids, **settings, bos=bos) for bos in (None, BOS))
    assert torch.equal(on[:, 1:], off[:, :-1])
    assert (on[:, 0] == BOS).all()
    texts = [ALPHABET, ALPHABET[::-1]]
    off, on = (from_documents(texts, as_codes, **settings, bos=bos) for bos in (None, BOS))
    assert torch.equal(on[:, 1:], off[:, :-1])
    assert (on[:, 0] == BOS).all()


def as_codes(text: str) -> Tensor:
    return torch.tensor([ord(sign) for sign in text])


def test_documents_keep_the_bos_that_the_tokenizer_gives_them(bos_tokenizer: Tokenizer) -> None:
    bos = bos_token(bos_tokenizer, True)
    rows = document_windows(bos_tokenizer, ["abc", "defg", "h"], 4, what="train", bos=bos)
    assert [bos_tokenizer.decode(row[1:]) for row in rows] == ["abc", "def", "g<|endoftext|>h"]
    assert (rows[:, 0] == bos).all()


def text_source(path: Path, **changes: Any) -> LocalText:
    files: dict[str, Any] = {"train": path, "calibration": None, "validation": None, "test": path}
    sizes = {"seqlen": 5, "calibration_samples": 4}
    return LocalText(name="t", column="text", separator="", **files, **{**sizes, **changes})


def test_every_kind_of_window_of_a_source_begins_with_bos(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(ALPHABET)
    data, bos = text_source(path, bos=True), byte_tokenizer.bos_token_id
    every = [data.train(byte_tokenizer).tokens, data.validation(byte_tokenizer).tokens]
    every += [data.test(byte_tokenizer), data.calibration(byte_tokenizer, seed=0)]
    for rows in every:
        assert (rows[:, 0] == bos).all()
        assert not (rows[:, 1:] == bos).any()


def test_the_hash_and_the_protocol_tell_windows_with_bos_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(ALPHABET)
    off, on = text_source(path, bos=False), text_source(path, bos=True)
    assert off.data_hash() == off.fingerprint() == on.fingerprint() != on.data_hash()
    assert (off.framing(), on.framing()) == ({"bos": False}, {"bos": True})


def test_a_tokenizer_without_bos_is_refused_with_the_remedy(byte_tokenizer: Tokenizer) -> None:
    byte_tokenizer.bos_token = None
    assert bos_token(byte_tokenizer, False) is None
    with pytest.raises(ValueError, match=r"has no BOS token .*; set data\.bos=false"):
        bos_token(byte_tokenizer, True)


def test_auto_is_refused_where_no_model_decides(byte_tokenizer: Tokenizer) -> None:
    unresolved: Any = "auto"
    with pytest.raises(ValueError, match="bos=auto is neither true nor false"):
        bos_token(byte_tokenizer, unresolved)


def test_a_window_is_its_place_behind_bos() -> None:
    ids = torch.tensor([5, BOS, 6, 7])
    assert window_at(ids, 0, 3, bos=BOS).tolist() == [BOS, 5, BOS]
    assert window_at(ids, 1, 3, bos=BOS).tolist() == [BOS, 6, 7]
    assert window_at(ids, 0, 3, bos=None).tolist() == [5, BOS, 6]


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "gemma3n", "gemma4_unified"])
def test_auto_is_on_for_the_families_that_need_it(kind: str) -> None:
    assert needs_bos(kind)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "mistral", "t5gemma", "", None])
def test_auto_is_off_for_all_others(kind: str | None) -> None:
    assert not needs_bos(kind)


def test_every_family_of_the_table_has_a_source_and_exists() -> None:
    from transformers import CONFIG_MAPPING

    assert all(NEEDS_BOS.values())
    assert NEEDS_BOS.keys() <= set(CONFIG_MAPPING)


@pytest.mark.parametrize(
    ("lines", "auto", "outer", "inner"),
    [
        ([], False, False, False),
        ([], True, True, True),
        (["data.bos=true"], False, True, True),
        (["data.bos=false"], True, False, False),
        (["data.text.bos=true"], False, False, True),
    ],
)
def test_the_text_of_a_source_follows_it(
    lines: list[str], auto: bool, outer: bool, inner: bool
) -> None:
    data = compose("run", ["data=python_docs_task", *lines]).data
    assert asks_for_auto(data)
    resolve_bos_(data, auto)
    assert (data.bos, data.text.bos) == (outer, inner)
    assert not asks_for_auto(data)


@pytest.mark.parametrize("value", ["yes", "1", "null"])
def test_bos_is_auto_true_or_false_alone(value: str) -> None:
    from sparsemend.preflight.declared import check_declared

    check_declared(compose("run", ["data.bos=true"]))
    with pytest.raises(ValueError, match=r"data\.bos=.* is not one of auto, true, false"):
        check_declared(compose("run", [f"data.bos={value}"]))
