"""Local text: texts come out unchanged, windows follow the WikiText-2 protocol."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sparsemend.data.text import LocalText
from sparsemend.data.text_files import check_texts, load_texts

AWKWARD = "\n  first line\n\n\nafter two blank lines\ttab\n \nno newline at the end"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def source(train: Any, test: Any, **changes: Any) -> LocalText:
    settings = {
        "name": "text",
        "calibration": None,
        "validation": None,
        "column": "text",
        "separator": "||",
        "seqlen": 4,
        "bos": False,
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
    assert load_texts("data.train", path, column="text") == [AWKWARD + "\n\n"]


def test_a_name_with_pattern_signs_is_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a[1]*.txt", "one")
    assert load_texts("data.train", path, column="text") == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz"])
def test_every_json_line_is_a_document(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / name, [AWKWARD, "two"])
    assert load_texts("data.train", path, column="body") == [AWKWARD, "two"]


def test_every_parquet_row_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "body": [AWKWARD, "two"]}), path)
    assert load_texts("data.train", path, column="body") == [AWKWARD, "two"]


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


def test_calibration_files_are_drawn_from_in_place_of_train(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    train, other = (
        written(tmp_path / "a.txt", ALPHABET),
        written(tmp_path / "b.txt", ALPHABET[::-1]),
    )
    apart, same = source(train, train, calibration=[other]), source(other, other)
    drawn = [data.calibration(byte_tokenizer, seed=1).tolist() for data in (apart, same)]
    assert drawn[0] == drawn[1]
    assert strings(byte_tokenizer, apart.train(byte_tokenizer).tokens)[0] == "abcd"
    assert apart.fingerprint() != source(train, train, validation=[other]).fingerprint()
    assert apart.fingerprint() != source(train, train).fingerprint()


def test_a_train_text_shorter_than_a_window_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = written(tmp_path / "a.txt", ALPHABET)
    with pytest.raises(ValueError, match=r"train text has 26 tokens.*data\.seqlen=27"):
        source(path, path, seqlen=27).train(byte_tokenizer)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.test=.*absent\.txt does not exist"):
        load_texts("data.test", tmp_path / "absent.txt", column="text")


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pdf is none of \.txt, \.jsonl"):
        load_texts("data.test", written(tmp_path / "a.pdf", "x"), column="text")


def test_a_missing_column_is_refused_with_the_present_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ValueError, match=r"no column text; set data\.column.*columns: body"):
        load_texts("data.test", path, column="text")


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"body": 1}\n')
    with pytest.raises(ValueError, match=r"line 1 has body=1 of type int; set data\.col"):
        load_texts("data.test", path, column="body")


def test_a_row_without_text_is_refused_by_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one", None, "three"])
    with pytest.raises(ValueError, match="no text in line 2"):
        load_texts("data.test", path, column="body")


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
    assert load_texts("data.train", tmp_path / "a.txt", column="text") == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 " * 100, "is not UTF-8 text"),
        ("b.jsonl", b"", "is empty"),
        ("c.txt", b"", "is empty"),
    ],
)
def test_a_file_that_holds_no_text_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        load_texts("data.test", tmp_path / name, column="text")


def test_a_file_replaced_by_another_of_the_same_time_is_read_anew(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["old"])
    time = path.stat().st_mtime_ns
    assert load_texts("data.train", path, column="body") == ["old"]
    write_lines(path, ["new"])
    os.utime(path, ns=(time, time))
    assert load_texts("data.train", path, column="body") == ["new"]


def test_text_that_looks_like_dates_stays_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["2020-01-01", "2020-01-02T00:00:00"])
    assert load_texts("data.train", path, column="body") == ["2020-01-01", "2020-01-02T00:00:00"]


def packed(lines: list[str | None]) -> bytes:
    text = "".join(json.dumps({"body": line}) + "\n" for line in lines)
    return gzip.compress(text.encode(), mtime=0)  # a test's name must not depend on the time


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", packed([ALPHABET * 9, "b"])[:-20], "is no whole gzip file"),
        ("a.jsonl.gz", b'{"body": "x"}\n', "is no whole gzip file .*take .gz off the name"),
        ("a.jsonl.gz", packed(["x"])[:10] + b"\xff" * 9, "is no whole gzip file"),
        ("a.parquet", b"PAR1" + b"x" * 90, "is no whole parquet file"),
        ("a.parquet", b"", "is no whole parquet file"),
        ("a.jsonl", b'{"body": "x"}\n{"body": "y\n', "line 2 is not JSON: "),
        ("a.jsonl", b'{"body": "y', "line 1 is not JSON: Unterminated string starting at column"),
        ("a.jsonl", b'[{"body": "x"}, {"body": 1}]', r"row 1 \(line 1\) has body=1 of type int"),
        ("a.jsonl", b'[{"body": "x"}] and', "line 1 is not JSON: text follows the end of the list"),
        ("a.jsonl", b'[{"body": "x"},]', r"row 1 \(line 1\) is not JSON: Expecting value"),
        ("a.jsonl", b'["x"]', r"row 0 \(line 1\) is no object of fields"),
        ("a.jsonl", b'{"body": "\\ud800"}', "line 1 has half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, r"row 0 \(line 1\) is not JSON: values lie too deep"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", b'{"body": null}', "has no text in line 1; drop the row"),
        ("a.jsonl", b'{"body": "x"}\n{"n": 1}', "line 2 has no column body; .*columns: n"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_with_its_name_and_row(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (load_texts, check_texts):  # the second before torch is imported
        with pytest.raises(ValueError, match=rf"^data\.train=.*{name} {message}") as caught:
            read("data.train", path, column="body")
        assert "\n" not in str(caught.value)


def test_half_a_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": [AWKWARD, "two"]}), path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"a\.parquet is no whole parquet file"):
        check_texts("data.train", path, column="body")


def test_of_a_large_file_the_first_row_alone_is_checked_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsemend.data.text_files.SMALL", 10)
    path = write_lines(tmp_path / "a.jsonl", ["one", None])
    check_texts("data.train", path, column="body")
    with pytest.raises(ValueError, match="no text in line 2"):
        load_texts("data.train", path, column="body")
