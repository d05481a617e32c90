"""Print what is installed here of the project's requirements, as a lock file.

Run with the Python of the environment in which the tests passed:

    python docker/lock.py sweep adamw_8bit > docker/requirements.lock
    python docker/lock.py --build > docker/build.lock

Names and versions only: a local version such as torch's +cpu is dropped, so that the same lock
serves the CPU and the CUDA build, and there are no hashes, which differ between those two and
between processors.  The NVIDIA libraries of a CUDA build are pinned by torch's own metadata.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def wanted(project: dict[str, Any], arguments: list[str]) -> list[str]:
    """Requirement lines of pyproject.toml: of the build, or of a run with some extras."""
    if arguments == ["--build"]:
        return list(project["build-system"]["requires"])
    extras = project["project"]["optional-dependencies"]
    lines = list(project["project"]["dependencies"])
    return lines + [line for extra in arguments for line in extras[extra]]


def closure(lines: Iterable[str]) -> dict[str, str]:
    """Canonical name -> installed version of all that these requirements need.

    Raises ValueError where something installed is outside what is asked for.
    """
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        distribution = metadata.distribution(requirement.name)
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise ValueError(f"{requirement} is asked for, {distribution.version} is installed")
        name = canonicalize_name(requirement.name)
        found[name] = distribution.version.partition("+")[0]
        for chosen in ("", *requirement.extras):
            if (name, chosen) not in done:
                done.add((name, chosen))
                waiting += [(Requirement(line), chosen) for line in distribution.requires or []]
    return found


def main() -> None:
    arguments = sys.argv[1:]
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    print(f"# python docker/lock.py {' '.join(arguments)}")
    for name, version in sorted(closure(wanted(project, arguments)).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
