"""Pre-tokenised files: order, cutting, held-out rows, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsemend.data.tokens import Tokens


def numbered(first: int, rows: int, *, length: int = 6) -> Tensor:
    """Row r holds first + 10 r, first + 10 r + 1, ..."""
    return first + 10 * torch.arange(rows)[:, None] + torch.arange(length)


FILES = {
    "calibration": numbered(1000, 5),
    "train": numbered(2000, 40),
    "validation": numbered(3000, 3),
    "test": numbered(4000, 4),
}


def source(folder: Path, **changes: Any) -> Tokens:
    """The four files of FILES in `folder`; a change replaces one tensor or one other parameter."""
    settings: dict[str, Any] = {"name": "tokens", "seqlen": 4, "calibration_samples": 3}
    for key, ids in {**FILES, **changes}.items():
        if isinstance(ids, Tensor):
            settings[key] = str(folder / f"{key}.safetensors")
            save_file({"input_ids": ids.contiguous()}, settings[key])
        else:
            settings[key] = ids
    return Tokens(**settings)


def test_calibration_is_the_first_rows_in_order(tmp_path: Path) -> None:
    rows = source(tmp_path).calibration(None, seed=0)
    assert torch.equal(rows, numbered(1000, 3, length=4))


def test_the_seed_changes_nothing(tmp_path: Path) -> None:
    data = source(tmp_path)
    assert torch.equal(data.calibration(None, seed=0), data.calibration(None, seed=9))


def test_every_test_row_is_cut_to_seqlen(tmp_path: Path) -> None:
    assert torch.equal(source(tmp_path).test(None), numbered(4000, 4, length=4))


def test_a_validation_file_is_read_whole_and_leaves_train_whole(tmp_path: Path) -> None:
    data = source(tmp_path)
    assert torch.equal(data.validation(None).tokens, numbered(3000, 3, length=4))
    assert torch.equal(data.train(None).tokens, numbered(2000, 40, length=4))


def test_without_a_validation_file_the_last_twentieth_of_train_serves(tmp_path: Path) -> None:
    data = source(tmp_path, validation=None)
    assert torch.equal(data.train(None).tokens, numbered(2000, 38, length=4))
    assert torch.equal(data.validation(None).tokens, numbered(2380, 2, length=4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_smaller_integers_come_out_as_int64(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = source(tmp_path, test=numbered(7, 2).to(dtype)).test(None)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, numbered(7, 2, length=4))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    data = source(tmp_path, test=str(tmp_path / "absent.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"data\.test=.*absent\.safetensors.*give a"):
        data.test(None)


def test_a_file_without_input_ids_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    data = source(tmp_path)
    save_file({"tokens": numbered(0, 2)}, tmp_path / "test.safetensors")
    with pytest.raises(ValueError, match="no tensor `input_ids`; it holds tokens"):
        data.test(None)


def test_too_few_calibration_rows_are_refused_with_both_counts(tmp_path: Path) -> None:
    data = source(tmp_path, calibration_samples=6)
    with pytest.raises(ValueError, match=r"5 rows, fewer than the 6.*calibration_samples=5"):
        data.calibration(None, seed=0)


def test_a_single_train_row_cannot_also_validate(tmp_path: Path) -> None:
    data = source(tmp_path, train=numbered(0, 1), validation=None)
    with pytest.raises(ValueError, match=r"1 training window.*give at least 2"):
        data.train(None)


def test_rows_shorter_than_seqlen_are_refused_with_both_lengths(tmp_path: Path) -> None:
    data = source(tmp_path, seqlen=7)
    with pytest.raises(ValueError, match=r"rows of 6 tokens, shorter than data\.seqlen=7"):
        data.test(None)


def test_floating_point_ids_are_refused(tmp_path: Path) -> None:
    data = source(tmp_path, test=numbered(0, 2).float())
    with pytest.raises(ValueError, match="dtype F32, which is not an integer type"):
        data.test(None)


def test_the_fingerprint_is_stable_over_new_sources(tmp_path: Path) -> None:
    assert source(tmp_path).fingerprint() == source(tmp_path).fingerprint()


@pytest.mark.parametrize("key", list(FILES))
def test_one_other_token_in_any_file_changes_the_fingerprint(tmp_path: Path, key: str) -> None:
    before = source(tmp_path).fingerprint()
    ids = FILES[key].clone()
    ids[-1, -1] += 1
    assert source(tmp_path, **{key: ids}).fingerprint() != before
