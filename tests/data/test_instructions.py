"""Instruction sources on local files and on folders laid out like hub repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparsemend.data.base import UNLABELLED, DataSource, Examples
from sparsemend.data.instructions import Instructions
from sparsemend.data.prompts import Prompted
from sparsemend.data.text import LocalText

pytestmark = pytest.mark.usefixtures("empty_cache")

Tokenizer = PreTrainedTokenizerFast


class Text(DataSource):
    """A text source whose windows tell where they come from."""

    def __init__(self, mark: str = "text") -> None:
        self.name, self.seqlen, self.calibration_samples, self.mark = "text", 5, 3, mark

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return torch.full((3, 5), seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        raise AssertionError("the text is not trained on")

    validation = train

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return torch.full((2, 5), 9)

    def fingerprint(self) -> str:
        return self.mark


def row(number: int) -> dict[str, str]:
    return {"q": f"question {number}", "a": f"{number}"}


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def source(**changes: Any) -> Instructions:
    settings: dict[str, Any] = {
        "name": "instructions",
        "path": None,
        "config": None,
        "train": "train",
        "validation": None,
        "test": None,
        "template": "plain",
        "fields": ["q", "a"],
        "empty_answers": False,
        "validation_examples": 3,
        "test_examples": 0,
        "split_seed": 42,
        "mask_prompt": False,
        "packing": False,
        "seqlen": 16,
        "bos": False,
        "chat_template": False,
        "calibration_from": "text",
        "calibration_samples": 3,
        "text": Text(),
    }
    return Instructions(**{**settings, **changes})


def numbers(examples: list[Prompted] | Any) -> list[int]:
    return [int(example.answer) for example in examples]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "a.jsonl", [row(i) for i in range(20)])


def test_validation_is_what_datasets_holds_out_of_the_same_rows(lines: Path) -> None:
    data = source(train=str(lines), validation_examples=5, split_seed=7)
    rows = datasets.Dataset.from_list([row(i) for i in range(20)])
    parts = rows.train_test_split(test_size=5, shuffle=True, seed=7)
    assert numbers(data.examples("validation")) == [int(a) for a in parts["test"]["a"]]
    assert numbers(data.examples("train")) == sorted(int(a) for a in parts["train"]["a"])


def test_test_examples_leave_the_validation_ones_where_they_are(lines: Path) -> None:
    few, more = source(train=str(lines)), source(train=str(lines), test_examples=4)
    assert numbers(more.examples("validation")) == numbers(few.examples("validation"))
    parts = [numbers(more.examples(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [13, 3, 4]
    assert sorted(number for part in parts for number in part) == list(range(20))


def test_files_of_their_own_leave_train_whole(tmp_path: Path, lines: Path) -> None:
    other = write_lines(tmp_path / "b.jsonl", [row(i) for i in (50, 51)])
    data = source(train=str(lines), validation=str(other), test=str(other), test_examples=4)
    assert numbers(data.examples("train")) == list(range(20))
    assert numbers(data.examples("validation")) == numbers(data.examples("test")) == [50, 51]


@pytest.mark.parametrize("on_the_hub", [False, True])
def test_validation_from_a_range_of_train_leaves_the_rows_of_train_as_numbered(
    lines: Path, monkeypatch: pytest.MonkeyPatch, *, on_the_hub: bool
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, split: [row(i) for i in range(20)])
    where = {"path": "org/name"} if on_the_hub else {"path": str(lines)}
    data = source(**where, validation="train[-4:]", test="train[2:4]")
    assert numbers(data.examples("train")) == list(range(20))
    assert numbers(data.examples("validation")) == [16, 17, 18, 19]
    assert numbers(data.examples("test")) == [2, 3]
    with pytest.raises(ValueError, match=r"data\.validation=train\[20:\] is none of the 20 rows"):
        source(**where, validation="train[20:]").examples("train")


def test_calibration_may_be_windows_over_the_training_examples(
    lines: Path, byte_tokenizer: Tokenizer
) -> None:
    byte_tokenizer.chat_template = "{% for m in messages %}<{{m.content}}>{% endfor %}"
    data = source(
        train=str(lines), seqlen=8, calibration_from="train", chat_template=True, bos=True
    )
    text = "".join(f"<question {i}><{i}>" for i in numbers(data.examples("train")))
    rows = data.calibration(byte_tokenizer, seed=3)
    assert rows.shape == (3, 8)
    for window in map(byte_tokenizer.decode, rows):
        assert window.startswith("<|endoftext|>")
        assert window.replace("<|endoftext|>", "") in text
    assert data.framing() == {"bos": True, "chat_template": True}


def test_a_text_inside_names_its_keys(lines: Path, byte_tokenizer: Tokenizer) -> None:
    files = {"train": lines, "calibration": None, "validation": None, "test": lines}
    settings = {"column": "text", "separator": "", "calibration_samples": 3, "bos": False}
    text = LocalText(name="t", seqlen=8, **files, **settings)
    data = source(train=str(lines), text=text)
    with pytest.raises(ValueError, match=r"^data\.text\.test=.*set data\.text\.column to a text"):
        data.test(byte_tokenizer)
    write_lines(lines, [{"text": "short"}])
    with pytest.raises(ValueError, match=r"data\.text\.seqlen=8.*lower data\.text\.seqlen to at"):
        data.test(byte_tokenizer)


def test_holding_out_every_example_is_refused_with_the_counts(lines: Path) -> None:
    data = source(train=str(lines), validation_examples=15, test_examples=5)
    message = r"validation_examples=15 and data\.test_examples=5 hold 20 examples out of the 20 of"
    with pytest.raises(ValueError, match=message):
        data.examples("train")


def test_a_folder_laid_out_like_the_hub_repository_is_read_by_config_and_split(
    tmp_path: Path,
) -> None:
    for split, first in (("train", 0), ("test", 100)):
        name = f"{split}-00000-of-00001.parquet"
        write_parquet(tmp_path / "main" / name, [row(first + i) for i in range(5)])
        write_parquet(tmp_path / "socratic" / name, [row(1000)] * 5)
    data = source(path=str(tmp_path), config="main", test="test", validation_examples=1)
    assert numbers(data.examples("test")) == list(range(100, 105))
    assert len(data.examples("train")) == 4


def test_a_json_list_as_path_is_the_train_split(tmp_path: Path) -> None:
    path = tmp_path / "commonsense_170k.json"
    path.write_text(json.dumps([row(i) for i in range(5)], indent=1))
    assert len(source(path=str(path)).examples("train")) == 2


def test_the_hub_is_asked_by_id_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str, *, split: str) -> list[dict[str, str]]:
        asked.append((path, config, split))
        return [row(i) for i in range(5)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = source(path="openai/gsm8k", config="main", test="test")
    assert numbers(data.examples("test")) == list(range(5))
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


def test_a_parquet_row_that_does_not_fit_is_refused_by_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [row(0), {"q": "x", "a": ""}])
    with pytest.raises(ValueError, match=r"train\.parquet row 1 has an empty a"):
        source(train=str(path)).examples("train")


def test_training_keeps_the_prompt_in_the_loss_and_the_task_never(
    lines: Path, byte_tokenizer: Tokenizer
) -> None:
    data = source(train=str(lines), test_examples=1)
    train, task = data.train(byte_tokenizer), data.task(byte_tokenizer)
    assert torch.equal(train.labels[:, :11], train.tokens[:, :11])
    assert task is not None
    (answer,) = (example.answer for example in data.examples("test"))
    labelled = task.tokens[task.labels != UNLABELLED]
    assert byte_tokenizer.decode(labelled) == f"{answer}<|endoftext|>"


def test_a_masked_prompt_is_left_out_of_train_and_validation(
    lines: Path, byte_tokenizer: Tokenizer
) -> None:
    data = source(train=str(lines), mask_prompt=True)
    for rows in (data.train(byte_tokenizer), data.validation(byte_tokenizer)):
        assert torch.all(rows.labels[:, : len("question ")] == UNLABELLED)
        assert torch.all((rows.labels != UNLABELLED).sum(dim=1) <= 3)


def test_only_train_is_packed(lines: Path, byte_tokenizer: Tokenizer) -> None:
    data = source(train=str(lines), packing=True, seqlen=64, test_examples=3)
    # 17 - 3 examples of 12 to 14 tokens, four or five to a window
    assert len(data.train(byte_tokenizer)) < 5
    assert len(data.validation(byte_tokenizer)) == 3
    task = data.task(byte_tokenizer)
    assert task is not None
    assert len(task) == 3


def test_without_test_examples_there_is_no_task(lines: Path, byte_tokenizer: Tokenizer) -> None:
    assert source(train=str(lines)).task(byte_tokenizer) is None


def test_calibration_and_test_are_those_of_the_text(lines: Path) -> None:
    data = source(train=str(lines))
    assert torch.equal(data.calibration(None, seed=4), torch.full((3, 5), 4))
    assert torch.equal(data.test(None), torch.full((2, 5), 9))


def test_a_text_with_other_calibration_samples_is_refused(lines: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.text\.calibration_samples=3 differs from .*=4"):
        source(train=str(lines), calibration_samples=4)


def test_the_fingerprint_follows_the_examples_and_not_the_file(tmp_path: Path, lines: Path) -> None:
    same = write_lines(tmp_path / "b.jsonl", [row(i) for i in range(20)])
    before = source(train=str(lines)).fingerprint()
    assert source(train=str(same)).fingerprint() == before


@pytest.mark.parametrize("field", ["q", "a"])
def test_one_other_character_changes_the_fingerprint(
    tmp_path: Path, lines: Path, field: str
) -> None:
    rows = [row(i) for i in range(20)]
    rows[-1] = {**rows[-1], field: rows[-1][field] + "!"}
    other = write_lines(tmp_path / "b.jsonl", rows)
    assert source(train=str(other)).fingerprint() != source(train=str(lines)).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [{"template": "question_answer"}, {"split_seed": 43}, {"text": Text("other")}],
    ids=["template", "hold-out", "text"],
)
def test_the_fingerprint_covers_template_hold_out_and_text(
    lines: Path, changes: dict[str, Any]
) -> None:
    changed = source(train=str(lines), **changes).fingerprint()
    assert changed != source(train=str(lines)).fingerprint()
