"""Compiles the kernels once, with the user's compiler, into the user's cache.

    $SPARSEMEND_CACHE, else $XDG_CACHE_HOME/sparsemend, else ~/.cache/sparsemend
        engine/<digest>.so

The digest is of the sources, the flags, the compiler's version and the macros that it defines: they
name the instructions that it uses everywhere, and $CXX or a wrapper may ask for this processor's.
Beyond them the library has the instructions of every processor and asks at run time which it may
use, so a cache that several machines share stays right.  Two processes at once build it once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

from sparsemend.files import replacing, user_cache

KEY = "SPARSEMEND_ENGINE"
TORCH = "torch"
FORMS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # as in engine.cpp, worst first
SOURCE = Path(__file__).with_name("source")
MAIN = "engine.cpp"
COMPILERS = ("c++", "g++", "clang++")
VERSION = ("--version",)
MACROS = ("-dM", "-E", "-x", "c++", os.devnull)
# -w: warnings would be about the compiler's own headers, and nobody could read them
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
OPENMP = "-fopenmp"  # left out where a compiler has none: then products run on one thread


class NoKernels(Exception):
    """The kernels cannot be had here; the message says why."""


def asked_form() -> str:
    """The form that $SPARSEMEND_ENGINE names, "" where it is unset; raises ValueError on others."""
    asked = os.environ.get(KEY, "")
    if asked not in ("", *FORMS, TORCH):
        raise ValueError(f"{KEY}={asked} is not one of: {', '.join((*FORMS, TORCH))}")
    return asked


@cache
def load_library(main: Path | None = None) -> ctypes.CDLL:
    """`compiled_library`, loaded; one that cannot be is compiled anew.  Raises NoKernels."""
    path = compiled_library(main)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with suppress(OSError):  # of a cache that others write
            path.unlink(missing_ok=True)
    path = compiled_library(main)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernels(
            f"{path} cannot be loaded ({error}); set SPARSEMEND_CACHE to another folder"
        ) from error


def compiled_library(main: Path | None = None) -> Path:
    """The library, compiled now if it is not in the cache; raises NoKernels.

    main: the file that includes the others of its folder; None: the engine's.
    """
    compiler, main = _compiler(), main or SOURCE / MAIN
    digest = _digest(compiler, main.parent)
    try:
        path = user_cache() / "engine" / f"{digest}.so"
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                with replacing(path) as partial:
                    _compile(compiler, main, partial)
    except RuntimeError as error:  # of expanduser
        raise NoKernels(f"{error}; set SPARSEMEND_CACHE to a folder for the kernels") from error
    except OSError as error:
        raise NoKernels(
            f"{path.parent} cannot be written ({error}); set SPARSEMEND_CACHE to a folder that can"
        ) from error
    return path


def _compiler() -> list[str]:
    """The command of the compiler: $CXX, or the first of COMPILERS on the PATH."""
    asked = os.environ.get("CXX", "")
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise NoKernels(f"CXX={asked} cannot be read as a command: {error}") from error
    for name in words[:1] or COMPILERS:
        if where := shutil.which(name):
            return [where, *words[1:]]
    missing = f"CXX={words[0]} is not on the PATH" if words else "no C++ compiler is on the PATH"
    raise NoKernels(f"{missing}; install one ({', '.join(COMPILERS)}) or set CXX")


def _digest(compiler: list[str], source: Path) -> str:
    words = [*compiler, *FLAGS, platform.system(), platform.machine()]
    digest = hashlib.sha256("\n".join(words).encode())
    for question in (VERSION, MACROS):
        digest.update(_run([*compiler, *question]).stdout.encode())
    for file in sorted(source.iterdir()):
        digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:24]


def _compile(compiler: list[str], main: Path, target: Path) -> None:
    for extra in ([OPENMP], []):
        done = _run([*compiler, *FLAGS, *extra, str(main), "-o", str(target)])
        if done.returncode == 0 and target.is_file():
            return
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, no message"]
    reason = next((line for line in lines if "error" in line), lines[-1])
    raise NoKernels(f"{compiler[0]} cannot compile {main}: {reason}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command says, in English; raises NoKernels where the system cannot run it."""
    english = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=english, check=False
        )
    except OSError as error:
        raise NoKernels(f"{command[0]} cannot be run ({error}); set CXX to a compiler") from error
