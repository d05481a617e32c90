"""Local instruction files: every row with its line, and which files make a split."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sparsemend.data.instruction_files import file_examples, split_files
from sparsemend.data.prompts import Prompted, RowFormat

PLAIN = RowFormat("plain", ("q", "a"), empty_answers=False)
TWO = [Prompted("one", "1"), Prompted("two\n", "é")]
ROWS = [{"q": e.prompt, "a": e.answer} for e in TWO]


def written(path: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def read(path: Path, text: str, *, encoding: str = "utf-8") -> list[Prompted]:
    return list(file_examples(written(path, text, encoding=encoding), PLAIN, str(path)))


def refused(path: Path, text: str) -> str:
    with pytest.raises(ValueError, match=r"line|row|empty") as caught:
        read(path, text)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n",
        "\n\n" + json.dumps(ROWS),
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "\n".join(json.dumps(row) for row in ROWS),
        "\n" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n \n",
    ],
    ids=["list", "indented", "after blank lines", "lines", "no last newline", "blank lines"],
)
def test_a_list_and_lines_are_both_read_whatever_the_name(
    tmp_path: Path, name: str, text: str
) -> None:
    assert read(tmp_path / name, text) == TWO


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", json.dumps(ROWS), encoding="utf-8-sig") == TWO


def test_a_missing_field_in_lines_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.jsonl", '{"q": "x", "a": "1"}\n\n{"q": "y", "b": "2"}\n')
    assert message.startswith(f"{tmp_path}/a.jsonl line 3 has no field a (fields: q, b);")


def test_a_missing_field_in_a_list_is_refused_with_the_line_its_object_begins_on(
    tmp_path: Path,
) -> None:
    rows = [*ROWS, {"q": "y", "b": "2"}]
    message = refused(tmp_path / "a.json", json.dumps(rows, indent=2))
    # [ on line 1, then objects of four lines each: they begin on 2, 6 and 10
    assert message.startswith(f"{tmp_path}/a.json row 2 (line 10) has no field a (fields: q, b);")


def test_a_list_on_one_line_is_refused_with_its_row(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.json", json.dumps([*ROWS, {"q": "y", "a": 3}]))
    assert message == f"{tmp_path}/a.json row 2 (line 1) has a=3 of type int; give text in quotes"


ALPACA = RowFormat("alpaca", ("instruction", "input", "output"), empty_answers=False)
WITH, WITHOUT = (
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Hi.", "output": "Hello."},
)


def test_a_row_that_lacks_the_input_has_an_empty_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps([WITH, WITHOUT]))
    first, second = file_examples(path, ALPACA, str(path))
    assert "### Input:\n1 2\n" in first.prompt
    assert "### Input" not in second.prompt
    assert second == ALPACA.example({**WITHOUT, "input": ""}, where="")


def test_an_input_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", json.dumps([WITHOUT, {**WITHOUT, "context": "1 2"}]))
    message = r"a\.json has no field input in any row; name .* or give null in its place"
    with pytest.raises(ValueError, match=message):
        list(file_examples(path, ALPACA, str(path)))


def test_a_parquet_file_is_read_and_its_bad_row_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert list(file_examples(path, PLAIN, str(path))) == TWO
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"q": None, "a": "x"}]), path)
    with pytest.raises(ValueError, match=r"a\.parquet row 2 has q=None of type NoneType"):
        list(file_examples(path, PLAIN, str(path)))


def test_a_line_that_is_not_json_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.jsonl", '{"q": "x", "a": "1"}\n{"q": "y", "a": \n')
    assert f"{tmp_path}/a.jsonl line 2 is not JSON: Expecting value" in message


def test_a_list_that_is_not_json_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.json", '[\n{"q": "x", "a": "1"},\n{"q": y}\n]')
    assert f"{tmp_path}/a.json row 1 (line 3) is not JSON: Expecting value" in message


@pytest.mark.parametrize("rest", ["", '\n {"q": "y", "a": "2"}]'])
def test_a_list_that_does_not_go_on_is_refused_with_its_line(tmp_path: Path, rest: str) -> None:
    message = refused(tmp_path / "a.json", '[\n\n{"q": "x",\n"a": "1"}\n' + rest)
    assert f"line {6 if rest else 5} is not JSON: the list has neither , nor ]" in message


@pytest.mark.parametrize("text", ["", " \n\n", "[]", "[\n]\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path / "a.json", text) == (
        f"{tmp_path}/a.json is empty; give at least one example"
    )


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"q": "x", "a": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8 text"):
        list(file_examples(tmp_path / "a.jsonl", PLAIN, "data.train=a.jsonl"))


def test_a_file_stands_for_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "x")
    assert split_files("test", "org/name", None, str(path)) == [path]


def test_a_path_of_one_file_is_its_train_split(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", "x")
    assert split_files("train", str(path), None, "train") == [path]
    with pytest.raises(ValueError, match=r"is one file, which has no split test; give data\.test"):
        split_files("test", str(path), None, "test")


@pytest.mark.parametrize("path", ["org/name", "name"])
def test_a_hub_id_has_no_local_files(path: str) -> None:
    assert split_files("train", path, "main", "train") is None


def test_a_folder_gives_the_files_named_after_the_split_inside_the_config(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
        written(tmp_path / f"main/{name}.parquet", "x")
        written(tmp_path / f"socratic/{name}.parquet", "x")
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    found = split_files("train", str(tmp_path), "main", "train")
    assert found == [tmp_path / "main" / name for name in names]


def test_a_folder_of_one_file_under_another_name_has_a_train_split_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "commonsense_170k.json", "x")
    assert split_files("train", str(tmp_path), None, "train") == [path]
    with pytest.raises(FileNotFoundError, match=r"no split test .*holds commonsense_170k\.json"):
        split_files("test", str(tmp_path), None, "test")


def test_a_longer_name_is_another_split(tmp_path: Path) -> None:
    for name in ("train.jsonl", "training.jsonl", "test.jsonl"):
        written(tmp_path / name, "x")
    assert split_files("train", str(tmp_path), None, "train") == [tmp_path / "train.jsonl"]


def test_a_missing_file_is_refused_by_key_and_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.train=.*absent\.jsonl does not exist"):
        split_files("train", None, None, f"{tmp_path}/absent.jsonl")
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*absent does not exist"):
        split_files("train", f"{tmp_path}/absent", None, "train")


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "x")
    with pytest.raises(ValueError, match=r"a\.csv is none of \.json, \.jsonl, \.parquet"):
        split_files("train", None, None, str(path))


def test_a_split_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.train=train is the name of a split, but data\.pa"):
        split_files("train", None, None, "train")
