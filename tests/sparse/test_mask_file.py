"""A masks file is written a part at a time and read as one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from sparsemend.checkpoint.headers import read_header
from sparsemend.sparse.mask_file import (
    ALIGNMENT,
    PackedMask,
    PackedMasks,
    SavedMasks,
    load_masks,
    save_masks,
    write_masks,
)


def test_parts_are_let_go_one_by_one_and_read_back_together(tmp_path: Path) -> None:
    keeps = {f"block.{n}": torch.rand(5, 11, generator=torch.Generator()) > 0.5 for n in range(3)}
    last: list[weakref.ref[torch.Tensor]] = []

    def parts() -> Iterator[SavedMasks]:
        for name, keep in keeps.items():
            assert all(reference() is None for reference in last[:-1])
            mask = PackedMask.of(keep)
            last.append(weakref.ref(mask.bits))
            yield SavedMasks({name: mask}, [f"{name}.dense"])
            del mask

    path = tmp_path / "masks.safetensors"
    write_masks(parts(), path)
    masks = load_masks(path)
    assert masks.keys() == keeps.keys()
    assert all(torch.equal(masks[name], keep) for name, keep in keeps.items())
    read_header(path)  # whole, without a gap
    assert int.from_bytes(path.read_bytes()[:8], "little") % ALIGNMENT == 0
    with safe_open(path, framework="pt") as file:
        dense = '["block.0.dense", "block.1.dense", "block.2.dense"]'
        assert file.metadata()["stays_dense"] == dense
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_supports_that_are_packed_are_written_as_they_are(tmp_path: Path) -> None:
    """Unpacked and packed again they would take a byte per weight of the model."""

    class Packed(PackedMasks):
        def __getitem__(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} is unpacked")

    keep = torch.rand(5, 11, generator=torch.Generator()) > 0.5
    save_masks(Packed({"linear": PackedMask.of(keep)}), tmp_path / "masks.safetensors")
    assert torch.equal(load_masks(tmp_path / "masks.safetensors")["linear"], keep)


def test_a_name_is_looked_up_without_unpacking_its_support() -> None:
    class Unreadable(PackedMasks):
        def __getitem__(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} is unpacked")

    masks = Unreadable({"linear": PackedMask.of(torch.ones(2, 8, dtype=torch.bool))})
    assert "linear" in masks
    assert "other" not in masks
