"""What `datasets` reads of local files is what they hold now, whatever it read before."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sparsemend.data.by_content import content_cache, content_decides
from sparsemend.data.hub_files import text_column

pytestmark = pytest.mark.usefixtures("empty_cache")


def replaced(path: Path, texts: list[str | None]) -> Path:
    """A parquet file or packed JSON lines in the place of another, of the very same time."""
    time = path.stat().st_mtime_ns if path.exists() else None
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path.write_bytes(
            gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
        )
    if time is not None:
        os.utime(path, ns=(time, time))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.json.gz"])
def test_a_folder_whose_file_was_replaced_is_read_anew(tmp_path: Path, name: str) -> None:
    for texts in (["old"], ["new"]):
        replaced(tmp_path / name, [*texts])
        assert list(text_column(str(tmp_path), name, split="train", column="text")) == texts


def test_another_caller_of_datasets_reads_a_replaced_file_anew(tmp_path: Path) -> None:
    original, path = datasets.load_dataset, tmp_path / "a.parquet"
    for texts in (["old"], ["new"]):
        replaced(path, [*texts])
        with content_decides():
            rows = datasets.load_dataset("parquet", data_files={"train": str(path)})
        assert rows["train"]["text"][:] == texts
    assert datasets.load_dataset is original


@pytest.mark.parametrize(
    "files", ["*.parquet", ["a.parquet"], {"train": "a.*", "test": "b.parquet"}]
)
def test_the_cache_of_a_folder_changes_with_every_file_that_is_named(
    tmp_path: Path, files: object
) -> None:
    replaced(tmp_path / "a.parquet", ["one"])
    caches = [content_cache(str(tmp_path), data_files=files)]
    replaced(tmp_path / "a.parquet", ["two"])
    caches.append(content_cache(str(tmp_path), data_files=files))
    replaced(tmp_path / "c.json.gz", ["three"])  # not named
    caches.append(content_cache(str(tmp_path), data_files=files))
    assert caches[0] != caches[1] == caches[2]


def test_the_hub_keeps_its_cache() -> None:
    assert content_cache("org/name", data_files={"train": "data/train-*.parquet"}) == {}


def test_a_row_without_text_is_refused_with_its_file_and_number(tmp_path: Path) -> None:
    replaced(tmp_path / "a.parquet", ["one", None, "three"])
    rows = text_column(str(tmp_path), "a.parquet", split="train", column="text")
    assert (rows[0], rows[-1], rows[2:], len(rows)) == ("one", "three", ["three"], 3)
    for read in (lambda: " ".join(rows), lambda: rows[:2], lambda: rows[1]):
        with pytest.raises(ValueError, match=r"a\.parquet row 1 is None, no text; drop the row"):
            read()


def test_a_folder_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    replaced(tmp_path / "a.parquet", ["one"])
    with pytest.raises(ValueError, match=r"a\.parquet has no column body \(columns: text\)"):
        text_column(str(tmp_path), "a.parquet", split="train", column="body")


@pytest.mark.parametrize("name", ["a.parquet", "a.json.gz"])
def test_half_a_file_in_a_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = replaced(tmp_path / name, [f"some text {n}" for n in range(99)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        ValueError, match=rf"{name}.* cannot be read .*fetch its files again"
    ) as caught:
        text_column(str(tmp_path), name, split="train", column="text")
    assert "\n" not in str(caught.value)
