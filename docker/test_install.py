"""Run the install steps of a Dockerfile as they are written, in a clean folder, without Docker.

    python docker/test_install.py docker/Dockerfile.cpu INDEX_URL=... TORCH_INDEX_URL=...

The stages `wheel` and `environment` are carried out: every COPY copies, every RUN is given to
/bin/sh word for word (without --mount), with the ARGs and ENVs of its stage; WHEELS and
VIRTUAL_ENV point into a temporary folder, since /opt is not ours.  Then the installed commands
must answer from outside the checkout.  Takes minutes: run by hand, not in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

STAGES = ("wheel", "environment")
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass
class Stage:
    """One stage of a Dockerfile: its name and (instruction, argument) pairs."""

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages(text: str) -> list[Stage]:
    """The stages in order, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            found.append(Stage(argument.rpartition(" AS ")[2]))
        elif found:
            found[-1].steps.append((instruction, argument))
    return found


def carry_out(stage: Stage, folder: Path, given: dict[str, str], fixed: dict[str, str]) -> None:
    """Run a stage in `folder`; raises CalledProcessError where a step fails."""
    values = dict(fixed)
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
    for instruction, argument in stage.steps:
        if instruction in ("ARG", "ENV"):
            name, _, default = argument.partition("=")
            values.setdefault(name, given.get(name, default))
        elif instruction == "COPY":
            copy(argument, folder)
        elif instruction == "RUN":
            command = re.sub(r"--mount=\S+\s*", "", argument)
            print(f"{stage.name}: {command}", flush=True)
            started = perf_counter()
            subprocess.run(
                ["/bin/sh", "-c", command], cwd=folder, env={**environment, **values}, check=True
            )
            print(f"{stage.name}: {perf_counter() - started:.1f} s", flush=True)


def copy(argument: str, folder: Path) -> None:
    """COPY from the checkout; what comes from another stage lies in WHEELS already."""
    if argument.startswith("--from="):
        return
    *sources, target = argument.split()
    for source in sources:
        into = folder / target / Path(source).name if target.endswith("/") else folder / target
        if (CHECKOUT / source).is_dir():
            shutil.copytree(CHECKOUT / source, into)
        else:
            shutil.copyfile(CHECKOUT / source, into)


def main() -> None:
    dockerfile, given = Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:])
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tools, venv = root / "tools", root / "venv"
        # the image has a Python of its own for the wheel; here it is a second clean environment
        subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
        os.environ["PATH"] = f"{tools / 'bin'}:{os.environ['PATH']}"
        fixed = {"WHEELS": str(root / "wheels"), "VIRTUAL_ENV": str(venv)}
        for stage in stages(dockerfile.read_text(encoding="utf-8")):
            if stage.name in STAGES:
                folder = root / stage.name
                folder.mkdir()
                carry_out(stage, folder, given, fixed)
        for command in ("sparsemend --help", "sparsemend-check --help", "sparsemend method=none"):
            program, *arguments = command.split()
            started = perf_counter()
            done = subprocess.run(
                [str(venv / "bin" / program), *arguments], cwd=root, text=True, capture_output=True
            )
            print(f"{command}: exit {done.returncode}, {perf_counter() - started:.1f} s")
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
        print("\n".join(done.stdout.splitlines()[-12:]))


if __name__ == "__main__":
    main()
