"""Find the tasks that the lm-eval harness knows, and their folders, without importing it.

Its own index parses fourteen thousand files, which takes longer than evaluating a small model;
reading the one line that names a task or a group takes a second or two.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

NAME = re.compile(
    r"""^["']?(?:task|group)["']?:[ \t]*["']?([\w.+/-]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE
)
# keys of the most tokens of an answer, the first that is there counts, and the harness's default
ANSWER_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
USUAL_ANSWER = 256
SHIPPED = Path(__file__).with_name("tasks")


def find_tasks(wanted: Iterable[str], include_path: str | None) -> dict[str, Path]:
    """The folder of each wanted task or group, which holds its members too.

    The user's folder (None: there is none) is searched before the shipped tasks, those before the
    harness's.  Raises ValueError with the nearest names where a task is in none of them.
    """
    files, names = _locate(wanted, include_path)
    for name in wanted:
        if name not in files:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise ValueError(
                f"no lm-eval task or group is named {name!r}; {hint}Tasks of your own go into "
                "evaluation.zero_shot.include_path=FOLDER"
            )
    return {name: _own_folder(*place) for name, place in files.items()}


def folders_of(wanted: Iterable[str], include_path: str | None) -> set[Path]:
    """The folders of the wanted tasks, and of group members that lie elsewhere."""
    folders = set(find_tasks(wanted, include_path).values())
    seen: set[str] = set()
    left = set(wanted)
    while left:
        seen |= left
        files, _ = _locate(left, include_path)  # members of a group without a file are tags
        folders |= {_own_folder(*place) for place in files.values()}
        left = {member for path, _ in files.values() for member in members(path)} - seen
    return folders


def _locate(
    wanted: Iterable[str], include_path: str | None
) -> tuple[dict[str, tuple[Path, Path]], set[str]]:
    """(wanted name -> its yaml and the root that holds it, every name of the roots that were read).

    A root is read only where those before it lack a wanted name: the harness's has thousands.
    """
    files: dict[str, tuple[Path, Path]] = {}
    names: set[str] = set()
    for root in _roots(include_path):
        missing = [name for name in wanted if name not in files]
        if not missing:
            break
        yamls = names_under(root)
        names |= yamls.keys()
        files |= {name: (yamls[name], root) for name in missing if name in yamls}
    return files, names


def members(path: Path) -> list[str]:
    """The names that a group's yaml lists; a task's yaml lists none."""
    content = yaml.load(path.read_text(encoding="utf-8", errors="replace"), yaml.BaseLoader)
    listed = content.get("task") if isinstance(content, dict) else None
    entries = listed if isinstance(listed, list) else []
    names = (entry.get("task") if isinstance(entry, dict) else entry for entry in entries)
    return [name for name in names if isinstance(name, str)]


def answer_tokens(wanted: Iterable[str], include_path: str | None) -> dict[str, int]:
    """Task -> most tokens of an answer, for the wanted tasks and members that generate one.

    Tasks whose yaml does not state what they do, since a Python class does, are left out.
    """
    counts: dict[str, int] = {}
    seen: set[str] = set()
    left = set(wanted)
    while left:
        seen |= left
        files, _ = _locate(sorted(left), include_path)
        for name, (path, _) in files.items():
            settings = _settings(path)
            if settings.get("output_type") == "generate_until":
                counts[name] = _answer_tokens(settings.get("generation_kwargs"))
        left = {member for path, _ in files.values() for member in members(path)} - seen
    return counts


def _answer_tokens(generation: Any) -> int:
    settings = generation if isinstance(generation, Mapping) else {}
    counts = [str(settings[key]) for key in ANSWER_TOKENS if key in settings]
    return int(counts[0]) if counts and counts[0].isdecimal() else USUAL_ANSWER


def _settings(path: Path, inside: frozenset[Path] = frozenset()) -> dict[str, Any]:
    """The content of a task's yaml over that of the files that it includes, as text."""
    content = yaml.load(path.read_text(encoding="utf-8", errors="replace"), yaml.BaseLoader)
    if not isinstance(content, dict):
        return {}
    named = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in named if isinstance(named, list) else [named]:
        if (file := (path.parent / name).resolve()).is_file() and file not in inside:
            merged |= _settings(file, inside | {file})
    return merged | content


@cache
def names_under(root: Path) -> Mapping[str, Path]:
    """Every task or group that a yaml below `root` names, and that yaml (the first in order)."""
    paths: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml")):
        for name in NAME.findall(path.read_text(encoding="utf-8", errors="replace")):
            paths.setdefault(name, path)
    return paths


def _roots(include_path: str | None) -> list[Path]:
    user_roots = [Path(include_path)] if include_path else []
    return [*user_roots, SHIPPED, harness_tasks()]


def harness_tasks() -> Path:
    """The folder of the harness's own tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("evaluation=zero_shot needs the lm-eval package; pip install lm-eval")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _own_folder(path: Path, root: Path) -> Path:
    """The first folder below `root` on the way to `path`: a group lies there with its tasks."""
    parts = path.relative_to(root).parts
    return root / parts[0] if len(parts) > 1 else root
