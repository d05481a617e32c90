"""Find the declaration of every key of a composed config in the yamls that it was composed from.

A section that a class builds is declared by the yaml of its group whose `_target_` is that class,
and by what this yaml includes; a section without a class by the yamls of its group; a key at the
top by run.yaml, or by the experiment that adds it.  Hydra's own part is left to Hydra.  Nothing is
composed again: files are read once per process, about a hundred of them in a few hundredths of a
second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.declaration import Declaration, declaration
from sparsemend.config.locations import conf_folder

NOT_KEYS = ("_target_", "defaults", "hydra")
PACKAGE_LINE = re.compile(r"^# @package (\S+)\s*$", re.MULTILINE)
COMMENT = re.compile(r"(?:^|\s)#\s*(.*)")

Declarations = Mapping[str, Declaration]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads scalars as OmegaConf does: 1e-3, which YAML 1.1 takes for text, is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def declarations(cfg: DictConfig, folders: Sequence[Path] = ()) -> Declarations:
    """Dotted key -> its declaration, of every key that a yaml of conf/ or of `folders` declares."""
    places = (conf_folder(), *folders)
    root = declared_in(conf_folder() / "run.yaml")
    result = dict(root)
    for group, section in cfg.items_ex(resolve=False):
        if OmegaConf.is_dict(section):
            inside = _of_section(str(group), str(group), section, places)
            # what run.yaml says of a key holds, whatever an experiment sets it to
            result |= {key: entry for key, entry in inside.items() if key not in root}
        elif group not in root:
            result |= declared_by_experiments(str(group), places)
    return {key: _follow_references(key, result) for key in result}


def _of_section(key: str, group: str, section: Any, places: tuple[Path, ...]) -> Declarations:
    """The declarations of a section and of those inside it, by absolute key."""
    if section._is_none() or section._is_missing() or section._is_interpolation():
        return {}
    content = dict(section.items_ex(resolve=False))
    result: dict[str, Declaration] = {}
    if "_target_" in content:
        inside = declared_by_class(group, str(content["_target_"]), places)
        result = {f"{key}.{name}": entry for name, entry in inside.items()}
    elif key == group:
        inside = declared_by_group(group, places)
        result = {f"{key}.{name}": entry for name, entry in inside.items()}
        _join(result, declared_by_experiments(group, places))
        built = tuple(f"{key}.{name}" for name, inner in content.items() if _is_built(inner))
        result = {k: e for k, e in result.items() if not _is_inside(k, built)}
    for name, inner in content.items():
        if OmegaConf.is_dict(inner):
            result |= _of_section(f"{key}.{name}", group, inner, places)
    return result


def _is_built(section: Any) -> bool:
    """Whether a section is the class that it names."""
    return OmegaConf.is_dict(section) and "_target_" in section


def _is_inside(key: str, sections: tuple[str, ...]) -> bool:
    """Whether a key is one of these sections or lies in one."""
    return key in sections or key.startswith(tuple(f"{section}." for section in sections))


@cache
def declared_by_class(group: str, target: str, places: tuple[Path, ...]) -> Declarations:
    """The keys of a class, relative to its section; the first yaml that names one declares it."""
    line = re.compile(rf"^_target_:\s*['\"]?{re.escape(target)}['\"]?\s*(?:#.*)?$", re.MULTILINE)
    result: dict[str, Declaration] = {}
    for path in _yamls(group, places):
        if line.search(_text(path)):
            result = {**with_included(path, places), **result}
    return result


@cache
def declared_by_group(group: str, places: tuple[Path, ...]) -> Declarations:
    """The keys of a group without classes, relative to its section; any member may give them."""
    result: dict[str, Declaration] = {}
    for path in _yamls(group, places):
        package = PACKAGE_LINE.search(_text(path))
        if package and package.group(1) != "_global_":
            continue  # a member of a class: evaluation/perplexity
        entries = with_included(path, places)
        if package:
            start = f"{group}."
            entries = {k.removeprefix(start): e for k, e in entries.items() if k.startswith(start)}
        _join(result, entries)
    return result


@cache
def declared_by_experiments(group: str, places: tuple[Path, ...]) -> Declarations:
    """A key at the top, or the keys inside it, that an experiment adds or sets; absolute."""
    line = re.compile(rf"^{re.escape(group)}:", re.MULTILINE)
    result: dict[str, Declaration] = {}
    for path in _yamls("experiment", places):
        if line.search(_text(path)):
            entries = declared_in(path).items()
            _join(result, {k: e for k, e in entries if k == group or k.startswith(f"{group}.")})
    return result


def _join(result: dict[str, Declaration], entries: Declarations) -> None:
    """Add entries to `result` in place, widening those that it has."""
    for key, entry in entries.items():
        result[key] = result[key].beside(entry) if key in result else entry


@cache
def with_included(path: Path, places: tuple[Path, ...]) -> Declarations:
    """The keys of a yaml and of those that its defaults list includes at the same place."""
    result: dict[str, Declaration] = {}
    for included in _includes(path, places):
        result |= with_included(included, places)
    placed = _placed_inside(path)
    for key, entry in declared_in(path).items():
        if key.partition(".")[0] not in placed:  # declared by that member's own class
            result[key] = entry.inherit_from(result[key]) if key in result else entry
    return result


@cache
def declared_in(path: Path) -> Declarations:
    """The keys of one yaml alone, inner ones as `parent.child`.

    A mapping whose comment declares it so is one key.
    """
    node = _document(path)
    if not isinstance(node, yaml.MappingNode):
        return {}
    lines = _text(path).splitlines()
    return {key: entry for key, entry in _entries(node, lines) if key not in NOT_KEYS}


def _entries(
    node: Any, lines: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, Declaration]]:
    """(key, declaration) of every leaf of a mapping node; lines: those of its file."""
    for key, value in node.value:
        if key.value in NOT_KEYS:
            continue
        block = not isinstance(value, yaml.ScalarNode) and not value.flow_style
        mark = key.end_mark if block else value.end_mark
        match = COMMENT.search(lines[mark.line][mark.column :]) if mark.line < len(lines) else None
        comment = match.group(1).strip() if match else ""
        whole = yaml.constructor.SafeConstructor().construct_object(value, deep=True)
        entry = declaration(whole, comment)
        if isinstance(value, yaml.MappingNode) and not (entry.explicit and entry.kinds):
            yield from _entries(value, lines, f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", entry


def _includes(path: Path, places: tuple[Path, ...]) -> Iterator[Path]:
    """The yamls of a defaults list whose keys come to stand beside those of `path`."""
    for group, package, member in _defaults(path):
        if member == "_self_" or package not in (None, "_here_"):
            continue
        if group is None:
            yield from _file(member, path, places)
        elif group.startswith("/"):
            yield from _file(f"{group}/{member}", path, places)


def _placed_inside(path: Path) -> set[str]:
    """The keys of a yaml whose values are members that its defaults list places there."""
    return {package for _, package, _ in _defaults(path) if package not in (None, "_here_")}


@cache
def _document(path: Path) -> Any:
    """The root node of a yaml, None of an empty one."""
    return yaml.compose(_text(path), Loader=_Loader)


def _defaults(path: Path) -> Iterator[tuple[str | None, str | None, str]]:
    """(group, package, member) of every entry of a defaults list; without overrides."""
    node = _document(path)
    content = yaml.constructor.SafeConstructor().construct_document(node) if node else {}
    for entry in content.get("defaults") or [] if isinstance(content, Mapping) else []:
        ((key, member),) = entry.items() if isinstance(entry, Mapping) else (("", entry),)
        if isinstance(member, str) and " " not in key:
            group, _, package = key.partition("@")
            yield group or None, package or None, member


def _file(name: str, path: Path, places: tuple[Path, ...]) -> Iterator[Path]:
    """The first yaml of that name: `/group/member` from the top, `member` beside `path`."""
    roots = [place / name.lstrip("/") for place in places]
    beside = [path.parent / name]
    for stem in roots if name.startswith("/") else beside:
        file = stem.with_name(f"{stem.name.removesuffix('.yaml')}.yaml")
        if file.is_file():
            yield file
            return


@cache
def _yamls(group: str, places: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path for place in places for path in sorted((place / group).rglob("*.yaml")))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _follow_references(key: str, entries: Declarations) -> Declaration:
    """The declaration of a key with what it leaves unsaid taken from the key it refers to."""
    entry, seen = entries[key], {key}
    place, other = key, entry.reference
    while other is not None:
        place = _absolute(place, other)
        if place in seen or place not in entries:
            return entry
        seen.add(place)
        entry = replace(entry, reference=None).inherit_from(entries[place])
        default, other = entries[place].default, entries[place].reference
        entry = replace(entry, default=default, reference=other)
    return entry


def _absolute(key: str, reference: str) -> str:
    """The absolute key of a reference that stands at `key`: one dot is its own section."""
    dots = len(reference) - len(reference.lstrip("."))
    if not dots:
        return reference
    return ".".join([*key.split(".")[:-dots], reference.lstrip(".")])
