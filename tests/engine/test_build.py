"""The kernels are compiled once, whoever asks; where they cannot be, a line says why."""

from __future__ import annotations

import _ctypes
import os
import platform
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsemend.engine import build
from sparsemend.engine.build import FORMS, NoKernels, compiled_library, load_library

Compiler = Callable[..., Path]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Makes $CXX a script that notes what it compiles in a file, and a cache of this test's own."""
    monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "load_library", load_library.__wrapped__)  # without what was loaded

    def make(body: str, version: str = "1", macros: str = "") -> Path:
        calls, script = tmp_path / "calls", tmp_path / "cxx"
        script.write_text(
            f"#!/bin/sh\nif [ $1 = --version ]; then echo {version}; exit; fi\n"
            f"if [ $1 = -dM ]; then echo '{macros}'; exit; fi\n"
            f'echo "$@" >> {calls}\nfor target; do :; done\n{body}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return calls

    return make


def test_two_at_once_compile_once(compiler: Compiler) -> None:
    calls = compiler("sleep 0.1; echo library > $target")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: compiled_library(), range(4)))
    assert len(calls.read_text().splitlines()) == 1
    (path,) = paths
    assert path.read_text() == "library\n"
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == [path.name]


def test_another_compiler_or_source_has_a_library_of_its_own(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("echo library > $target")
    first = compiled_library()
    compiler("echo library > $target", version="2")
    second = compiled_library()
    compiler("echo library > $target", version="2", macros="#define __AVX512F__ 1")
    wrapped = compiled_library()  # by a wrapper that asks for this processor's instructions
    source = tmp_path / "source"
    source.mkdir()
    (source / build.MAIN).write_text("")
    monkeypatch.setattr(build, "SOURCE", source)
    third = compiled_library()
    (source / "more.h").write_text("")
    assert len({first, second, wrapped, third, compiled_library()}) == 5


def test_a_compiler_without_openmp_compiles_for_one_thread(compiler: Compiler) -> None:
    calls = compiler('case "$*" in *-fopenmp*) exit 1;; esac; echo library > $target')
    assert compiled_library().is_file()
    first, second = calls.read_text().splitlines()
    assert build.OPENMP in first.split()
    assert build.OPENMP not in second.split()


def test_what_a_compiler_refuses_is_told_and_leaves_nothing(compiler: Compiler) -> None:
    compiler('echo "engine.cpp:1: error: no such thing" >&2; exit 1')
    with pytest.raises(NoKernels, match=r"cannot compile .*: engine.cpp:1: error: no such thing"):
        compiled_library()
    assert list(build.user_cache().rglob("*.so*")) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo collect2: no space left >&2; exit 1", "collect2: no space left"),
        ("kill -9 $$", "exit status -9, no message"),
        ("printf '\\377 error: bytes' >&2; exit 1", "error: bytes"),
        ('test "$LC_ALL" = C && echo English error >&2; exit 1', "English error"),
    ],
)
def test_the_reason_of_a_compiler_is_never_lost(compiler: Compiler, body: str, words: str) -> None:
    compiler(body)
    with pytest.raises(NoKernels, match=rf"cannot compile .*: .*{words}"):
        compiled_library()


def test_a_user_without_a_home_is_told_what_to_set(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("echo library > $target")

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPARSEMEND_CACHE")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(NoKernels, match=r"home directory.*set SPARSEMEND_CACHE"):
        compiled_library()


def test_a_compiler_that_knows_no_pairs_compiles_the_forms_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (gcc := shutil.which("g++")) or platform.machine() != "x86_64":
        pytest.skip("no GCC for this processor's own instructions")
    monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", f"{gcc} -U__GNUC__ -D__GNUC__=9")
    library = load_library.__wrapped__()
    assert FORMS[library.sparsemend_best_form()] in ("portable", "avx2")


def test_without_a_compiler_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    with pytest.raises(NoKernels, match=r"no C\+\+ compiler is on the PATH; install one"):
        compiled_library()
    monkeypatch.setenv("CXX", "icpx -g")
    with pytest.raises(NoKernels, match="CXX=icpx is not on the PATH"):
        compiled_library()


def test_a_cache_that_is_a_file_is_named(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("echo library > $target")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEMEND_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(NoKernels, match=r"cannot be written .* set SPARSEMEND_CACHE"):
        compiled_library()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ('g++ "-O2', r'CXX=g\+\+ "-O2 cannot be read as a command'),
        ("g++ 'x", r"CXX=g\+\+ 'x cannot be read as a command: No closing quotation"),
        ("a_text", r"a_text cannot be run \(.*Exec format error"),
        ("half_a_program", r"half_a_program cannot be run .* set CXX to a compiler"),
    ],
)
def test_a_compiler_that_is_none_is_a_reason_to_multiply_otherwise(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("a_text", b"text"), ("half_a_program", b"\x7fELF")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", command)
    with pytest.raises(NoKernels, match=line):
        compiled_library()


def test_a_compiler_that_writes_nothing_is_named(compiler: Compiler) -> None:
    compiler("exit 0")
    with pytest.raises(NoKernels, match=r"cxx cannot compile .*: exit status 0, no message"):
        compiled_library()


def test_a_library_that_cannot_be_loaded_is_compiled_anew(compiler: Compiler) -> None:
    whole = _ctypes.__file__  # some library
    compiler(f"cp {whole} $target")
    path = compiled_library()
    path.write_text("no library")
    assert build.load_library()._name == str(path)
    assert path.read_bytes() == Path(whole).read_bytes()


def test_a_library_that_never_loads_is_named(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiler("echo no library > $target")
    with pytest.raises(NoKernels, match=r"\.so cannot be loaded .*; set SPARSEMEND_CACHE"):
        build.load_library()
    assert len(calls.read_text().splitlines()) == 2
