"""Local text: texts come out unchanged, windows follow the WikiText-2 protocol."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sparsemend.data.text import LocalText, load_texts

pytestmark = pytest.mark.usefixtures("empty_cache")

AWKWARD = "\n  first line\n\n\nafter two blank lines\ttab\n \nno newline at the end"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def source(train: Any, test: Any, **changes: Any) -> LocalText:
    settings = {
        "name": "text",
        "validation": None,
        "column": "text",
        "separator": "||",
        "seqlen": 4,
        "calibration_samples": 6,
    }
    return LocalText(train=train, test=test, **{**settings, **changes})


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_lines(path: Path, texts: list[str | None]) -> Path:
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def strings(tokenizer: PreTrainedTokenizerFast, rows: Tensor) -> list[str]:
    """The characters of each window."""
    return [tokenizer.decode(row) for row in rows]


def test_a_text_file_comes_out_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", AWKWARD + "\n\n")
    assert load_texts("train", path, column="text") == [AWKWARD + "\n\n"]


def test_a_name_with_pattern_signs_is_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a[1]*.txt", "one")
    assert load_texts("train", path, column="text") == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz"])
def test_every_json_line_is_a_document(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / name, [AWKWARD, "two"])
    assert load_texts("train", path, column="body") == [AWKWARD, "two"]


def test_every_parquet_row_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "body": [AWKWARD, "two"]}), path)
    assert load_texts("train", path, column="body") == [AWKWARD, "two"]


def test_the_separator_stands_between_rows_and_between_files(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    files = [write_lines(tmp_path / "a.jsonl", ["ab", "cd"]), written(tmp_path / "b.txt", "efgh")]
    data = source(files, files, column="body", seqlen=12)
    assert strings(byte_tokenizer, data.test(byte_tokenizer)) == ["ab||cd||efgh"]


def test_test_windows_follow_each_other_and_the_rest_is_dropped(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    windows = strings(byte_tokenizer, source(path, path, seqlen=8).test(byte_tokenizer))
    assert windows == ["abcdefgh", "ijklmnop", "qrstuvwx"]


def test_without_a_validation_file_the_last_train_windows_serve(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    data = source(path, path, seqlen=8)
    assert strings(byte_tokenizer, data.train(byte_tokenizer).tokens) == ["abcdefgh", "ijklmnop"]
    assert strings(byte_tokenizer, data.validation(byte_tokenizer).tokens) == ["qrstuvwx"]


def test_a_validation_file_leaves_train_whole(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    train = written(tmp_path / "a.txt", ALPHABET)
    other = written(tmp_path / "b.txt", "0123456789")
    data = source(train, other, validation=other, seqlen=8)
    assert len(data.train(byte_tokenizer).tokens) == 3
    assert strings(byte_tokenizer, data.validation(byte_tokenizer).tokens) == ["01234567"]


def test_calibration_draws_starts_over_the_whole_train_text(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    random.seed(1)
    starts = [random.randint(0, 26 - 4 - 1) for _ in range(6)]
    drawn = strings(byte_tokenizer, source(path, path).calibration(byte_tokenizer, seed=1))
    assert drawn == [ALPHABET[start : start + 4] for start in starts]


def test_a_train_text_shorter_than_a_window_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    with pytest.raises(ValueError, match=r"train text has 26 tokens.*data\.seqlen=27"):
        source(path, path, seqlen=27).train(byte_tokenizer)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.test=.*absent\.txt does not exist"):
        load_texts("test", tmp_path / "absent.txt", column="text")


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pdf is none of \.txt, \.jsonl"):
        load_texts("test", written(tmp_path / "a.pdf", "x"), column="text")


def test_a_missing_column_is_refused_with_the_present_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ValueError, match=r"no column text; set data\.column.*columns: body"):
        load_texts("test", path, column="text")


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"body": 1}\n')
    with pytest.raises(ValueError, match="column body of type int64"):
        load_texts("test", path, column="body")


def test_a_row_without_text_is_refused_by_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one", None, "three"])
    with pytest.raises(ValueError, match="no text in row 1"):
        load_texts("test", path, column="body")


def test_a_model_without_tokenizer_is_told_to_use_tokens(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    with pytest.raises(ValueError, match=r"needs a tokenizer.*use data=tokens"):
        source(path, path).test(None)


def test_the_fingerprint_follows_the_text_and_not_the_file(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.txt", "same"), written(tmp_path / "b.txt", "same")
    other = written(tmp_path / "c.txt", "sane")
    assert source(a, a).fingerprint() == source(b, b).fingerprint()
    assert source(a, a).fingerprint() != source(a, other).fingerprint()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert load_texts("train", tmp_path / "a.txt", column="text") == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 " * 100, "cannot be read .* is it UTF-8"),
        ("b.jsonl", b"", "is empty"),
        ("c.txt", b"", "is empty"),
    ],
)
def test_a_file_that_holds_no_text_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)data\.test=.*{name} {message}"):
        load_texts("test", tmp_path / name, column="text")
