"""Compiles the kernels once, with the user's compiler, into the user's cache.

    $SPARSEMEND_CACHE, else $XDG_CACHE_HOME/sparsemend, else ~/.cache/sparsemend
        engine/<digest>.so

The digest is of the sources, the flags, the compiler's version and the architecture.  The library
has the instructions of every processor of that architecture and asks at run time which it may use,
so a cache that several machines share stays right.  Two processes at once build it once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

from sparsemend.files import replacing, user_cache

SOURCE = Path(__file__).with_name("source")
MAIN = "engine.cpp"
COMPILERS = ("c++", "g++", "clang++")
# -w: warnings would be about the compiler's own headers, and nobody could read them
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
OPENMP = "-fopenmp"  # left out where a compiler has none: then products run on one thread


class NoKernels(Exception):
    """The kernels cannot be had here; the message says why."""


def compiled_library(main: Path | None = None) -> Path:
    """The library, compiled now if it is not in the cache; raises NoKernels.

    main: the file that includes the others of its folder; None: the engine's.
    """
    compiler, main = _compiler(), main or SOURCE / MAIN
    path = user_cache() / "engine" / f"{_digest(compiler, main.parent)}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                with replacing(path) as partial:
                    _compile(compiler, main, partial)
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
        raise NoKernels(f"CXX={asked} is no command line ({error}); mend it or unset it") from error
    for name in words[:1] or COMPILERS:
        if where := shutil.which(name):
            return [where, *words[1:]]
    reason = f"CXX={words[0]} is not on the PATH" if words else "no C++ compiler is on the PATH"
    raise NoKernels(f"{reason}; install one ({', '.join(COMPILERS)}) or set CXX")


def _digest(compiler: list[str], source: Path) -> str:
    version = _run(*compiler, "--version").stdout.encode()
    words = [*compiler, *FLAGS, platform.system(), platform.machine()]
    digest = hashlib.sha256(version + "\n".join(words).encode())
    for file in sorted(source.iterdir()):
        digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:24]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """What a command of the compiler ended with; raises NoKernels where it cannot be started."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise NoKernels(f"{command[0]} cannot be started ({error}); set CXX") from error


def _compile(compiler: list[str], main: Path, target: Path) -> None:
    for extra in ([OPENMP], []):
        command = [*compiler, *FLAGS, *extra, str(main), "-o", str(target)]
        done = _run(*command)
        if done.returncode == 0 and target.is_file():
            return
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
    raise NoKernels(f"{compiler[0]} cannot compile {main}: {lines[0]}")
