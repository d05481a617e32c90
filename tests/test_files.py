"""Files and folders are whole or absent, and what a killed process was writing goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsemend.files import forget_partials, replacing, replacing_folder, write_text

DEAD = 2**22 + 1  # above the largest number that Linux gives a process


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_that_could_not_be_filled_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_text(tmp_path / "model" / "weights", "old")

    def fail() -> None:
        with replacing_folder(tmp_path / "model") as partial:
            write_text(partial / "weights", "new")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert names(tmp_path) == ["model", "model/weights"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_filled_folder_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    write_text(tmp_path / "model" / "masks", "old")
    with replacing_folder(tmp_path / "model") as partial:
        write_text(partial / "weights", "new")
    assert names(tmp_path) == ["model", "model/weights"]


def test_what_killed_processes_were_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (f".a.{DEAD}.partial", f".b.{os.getppid()}.partial", "c.partial", ".d"):
        (tmp_path / name).touch()
    (tmp_path / f".model.{DEAD}.partial" / "deep").mkdir(parents=True)
    forget_partials(tmp_path)
    assert names(tmp_path) == [".b." + str(os.getppid()) + ".partial", ".d", "c.partial"]


def test_what_is_being_written_is_found_by_its_name(tmp_path: Path) -> None:
    """The name that `replacing` gives is one that `forget_partials` knows."""
    with replacing(tmp_path / "result.json") as partial:
        folder = partial.parent
        dead = folder.with_name(folder.name.replace(str(os.getpid()), str(DEAD)))
        dead.mkdir()
        (dead / ".tmp3x9Yk1").touch()  # as safetensors names what it writes
        assert not list(tmp_path.rglob("result.json"))  # or it would be taken for a run's
        forget_partials(tmp_path)
        assert not dead.exists()
        folder.mkdir(exist_ok=True)  # a process forgets what it was itself writing before
        partial.touch()
    assert names(tmp_path) == ["result.json"]


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fail() -> None:
        with replacing(tmp_path / "a") as partial:
            partial.with_name(".tmp3x9Yk1").touch()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
