"""A folder that no run could write is refused before one is made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.configs import compose
from support.families import random_model

from sparsemend.config.compose import compose_command
from sparsemend.preflight.place import check_place, check_room


def test_a_folder_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"file is no folder; give hydra\.run\.dir"):
        check_place(tmp_path / "file" / "out")


def test_a_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="is not writable"):
        check_place(tmp_path / "out")


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(OSError, match="has 4 KiB free; make room"):
        check_place(tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "short"),
    [
        (["export=true", "model.dtype=bfloat16"], 2),
        (["export=true", "model.dtype=bfloat16", "export_dtype=float32"], 4),
        (["export=true", "model.dtype=float32", "export_dtype=float16"], 2),
        (["model.dtype=float32"], None),
        (["export=true", "export_form=packed", "model.dtype=float32"], None),
        (["export=true", "debug=fast", "model.dtype=float32"], None),
        (["export=true", "model.path=org/name"], None),
    ],
)
def test_an_export_that_has_no_room_is_refused(
    lines: list[str], short: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """short: bytes of a value, None where any disk passes."""
    model = random_model("llama")
    model.save_pretrained(tmp_path / "model")
    count = sum(parameter.numel() for parameter in model.parameters())
    cfg = compose("run", ["model=local", f"model.path={tmp_path}/model", *lines])
    free = SimpleNamespace(free=count * (short or 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    check_room(cfg, tmp_path / "out")
    check_room(cfg, None)
    if short is None:
        return
    free.free -= 1
    with pytest.raises(
        OSError, match=rf"^export=true writes .*\({count:,} parameters in .* free; "
    ):
        check_room(cfg, tmp_path / "out")


def test_a_folder_that_is_still_to_be_made_passes(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b")
    check_place(None)


@pytest.mark.parametrize(
    ("lines", "folder"),
    [
        (["hydra.run.dir=out/a"], Path("out/a")),
        (["hydra.run.dir='${hydra:runtime.cwd}/a'"], None),
        (["-m", "seed=0,1", "hydra.sweep.dir=out/a"], Path("out/a")),
    ],
)
def test_the_folder_of_a_command_line_is_where_it_says(
    lines: list[str], folder: Path | None
) -> None:
    sweep = lines[0] == "-m"
    assert compose_command(lines[sweep:], multirun=sweep).folder == folder


def test_a_folder_that_the_line_leaves_out_lies_in_multirun() -> None:
    for sweep in (False, True):
        folder = compose_command([], multirun=sweep).folder
        assert folder is not None
        assert folder.parts[:2] == ("multirun", "default")
