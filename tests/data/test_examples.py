"""Tokens and labels by hand, a token per character; what packing keeps; where examples are cut."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.data.examples import Encoded, encode_examples, examples, pack, shared_prefix
from sparsemend.data.prompts import Prompted
from sparsemend.model import train_tokenizer

Tokenizer = PreTrainedTokenizerFast
NO = UNLABELLED


def of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text)["input_ids"]]


def built(
    tokenizer: Tokenizer | None,
    *prompted: tuple[str, str],
    seqlen: int = 8,
    mask_prompt: bool = True,
    packing: bool = False,
) -> Examples:
    return examples(
        [Prompted(*pair) for pair in prompted],
        tokenizer,
        seqlen=seqlen,
        mask_prompt=mask_prompt,
        packing=packing,
        what="train",
    )


def test_a_short_example_ends_with_eos_and_is_padded_on_the_right(
    byte_tokenizer: Tokenizer,
) -> None:
    a, b, c, eos = *of(byte_tokenizer, "abc"), byte_tokenizer.eos_token_id
    rows = built(byte_tokenizer, ("ab", "c"), seqlen=6)
    assert rows.tokens.tolist() == [[a, b, c, eos, eos, eos]]
    assert rows.labels.tolist() == [[NO, NO, c, eos, NO, NO]]
    assert rows.tokens.dtype == rows.labels.dtype == torch.int64


def test_an_unmasked_prompt_is_labelled_and_padding_is_not(byte_tokenizer: Tokenizer) -> None:
    a, b, c, eos = *of(byte_tokenizer, "abc"), byte_tokenizer.eos_token_id
    rows = built(byte_tokenizer, ("ab", "c"), seqlen=6, mask_prompt=False)
    assert rows.labels.tolist() == [[a, b, c, eos, NO, NO]]


def test_eos_is_left_out_where_it_does_not_fit(byte_tokenizer: Tokenizer) -> None:
    ids = of(byte_tokenizer, "abcd")
    rows = built(byte_tokenizer, ("ab", "cd"), seqlen=4)
    assert rows.tokens.tolist() == [ids]
    assert rows.labels.tolist() == [[NO, NO, *ids[2:]]]


def test_a_long_example_is_cut_at_the_window(byte_tokenizer: Tokenizer) -> None:
    ids = of(byte_tokenizer, "abcdef")
    rows = built(byte_tokenizer, ("ab", "cdef"), seqlen=3)
    assert rows.tokens.tolist() == [ids[:3]]
    assert rows.labels.tolist() == [[NO, NO, ids[2]]]


def test_eos_is_not_doubled_where_the_tokenizer_appends_it(bos_tokenizer: Tokenizer) -> None:
    eos = bos_tokenizer.eos_token_id  # BOS and EOS are one token here
    rows = built(bos_tokenizer, ("a", "b<|endoftext|>"), seqlen=6)
    a, b = of(bos_tokenizer, "ab")[1:]
    assert rows.tokens.tolist() == [[eos, a, b, eos, eos, eos]]
    assert rows.labels.tolist() == [[NO, NO, b, eos, NO, NO]]


def test_a_token_that_joins_prompt_and_answer_is_labelled() -> None:
    tokenizer = train_tokenizer(["ab ab ab"], 258)  # one merge: a and b become one token
    joined, a = of(tokenizer, "ab")[0], of(tokenizer, "a")[0]
    assert of(tokenizer, "ab") == [joined] != [a]
    rows = built(tokenizer, ("xa", "b"), seqlen=4)
    assert rows.tokens[0, 1].item() == joined
    assert rows.labels[0, :2].tolist() == [NO, joined]


def test_an_empty_answer_labels_the_end_alone(byte_tokenizer: Tokenizer) -> None:
    rows = built(byte_tokenizer, ("ab", ""), seqlen=4)
    assert rows.labels.tolist() == [[NO, NO, byte_tokenizer.eos_token_id, NO]]


@pytest.mark.parametrize(
    ("alone", "whole", "shared"),
    [([1, 2], [1, 2, 3], 2), ([1, 2], [1, 9, 3], 1), ([1, 2, 7], [1, 2, 3], 2), ([], [1], 0)],
)
def test_the_shared_prefix(alone: list[int], whole: list[int], shared: int) -> None:
    assert shared_prefix(alone, whole) == shared


def test_an_example_whose_answer_is_cut_off_whole_is_dropped_and_counted(
    byte_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        rows = built(byte_tokenizer, ("abcdefgh", "i"), ("a", "bcdefghi"), ("a", "b"), seqlen=8)
    assert [byte_tokenizer.decode(row)[:8] for row in rows.tokens] == ["abcdefgh", "ab<|endo"]
    assert "train  2 examples in 2 windows of 8 tokens  2 cut short  1 dropped" in caplog.text


def test_a_text_as_long_as_the_window_is_not_counted_as_cut(
    byte_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        built(byte_tokenizer, ("ab", "cdefgh"), seqlen=8)
    assert "0 cut short  0 dropped" in caplog.text


def test_with_the_prompt_in_the_loss_it_is_kept(byte_tokenizer: Tokenizer) -> None:
    rows = built(byte_tokenizer, ("abcdefgh", "i"), seqlen=8, mask_prompt=False)
    assert rows.labels.tolist() == [of(byte_tokenizer, "abcdefgh")]


def test_a_window_that_cuts_every_answer_off_is_refused_with_a_length_that_does_not(
    byte_tokenizer: Tokenizer,
) -> None:
    pairs = [("abcdefgh", "ij"), ("abcdefghi", "j")]
    with pytest.raises(ValueError, match=r"data\.seqlen=8 cuts off .* every train .* to 10 tokens"):
        built(byte_tokenizer, *pairs, seqlen=8)
    assert len(built(byte_tokenizer, *pairs, seqlen=10)) == 2


def test_a_label_in_the_first_place_alone_does_not_count(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cuts off the whole answer"):
        built(byte_tokenizer, ("", "ab"), seqlen=1)


def test_no_example_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"there are no train examples; give data\.train"):
        built(byte_tokenizer)


def test_a_tokenizer_is_needed(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="the model folder has none"):
        built(None, ("a", "b"))
    byte_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-text token, and this one has none"):
        built(byte_tokenizer, ("a", "b"))


def test_packed_examples_follow_each_other_whole(byte_tokenizer: Tokenizer) -> None:
    a, b, c, d, eos = *of(byte_tokenizer, "abcd"), byte_tokenizer.eos_token_id
    rows = built(byte_tokenizer, ("a", "b"), ("c", "d"), ("b", "a"), seqlen=7, packing=True)
    assert rows.tokens.tolist() == [[a, b, eos, c, d, eos, eos], [b, a, eos, eos, eos, eos, eos]]
    assert rows.labels.tolist() == [[NO, b, eos, NO, d, eos, NO], [NO, a, eos, NO, NO, NO, NO]]


@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_every_example_whole_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 20) for _ in range(200)]
    encoded = [Encoded([i] * size, [i] * size, length=size) for i, size in enumerate(sizes)]
    rows = pack(encoded, 20)
    assert [example for row in rows for example in row] == encoded
    fill = [sum(len(example.tokens) for example in row) for row in rows]
    assert max(fill) <= 20
    # greedy: the head of a window did not fit into the one before it
    heads = [len(row[0].tokens) for row in rows]
    assert all(full + head > 20 for full, head in zip(fill, heads[1:], strict=False))
    assert len(rows) < len(encoded)


def test_packing_labels_as_many_tokens_as_one_example_per_window(
    byte_tokenizer: Tokenizer,
) -> None:
    pairs = [("p" * (1 + i % 5), "a" * (1 + i % 3)) for i in range(30)]
    plain, packed = (built(byte_tokenizer, *pairs, seqlen=12, packing=p) for p in (False, True))
    assert len(packed) < len(plain) == 30
    assert torch.equal(packed.labels[packed.labels != NO], plain.labels[plain.labels != NO])


def test_encoding_many_is_encoding_each(byte_tokenizer: Tokenizer) -> None:
    pairs = [Prompted("p" * i, "a" * (9 - i)) for i in range(9)]
    settings = {"seqlen": 6, "mask_prompt": True}
    together = encode_examples(pairs, byte_tokenizer, **settings)
    assert together == [encode_examples([p], byte_tokenizer, **settings)[0] for p in pairs]
