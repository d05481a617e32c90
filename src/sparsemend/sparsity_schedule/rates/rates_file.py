"""Rates from a file, free of torch: .yaml, .json or .csv, by linear or by block.

A key names a linear (`model.layers.3.mlp.up_proj`, or short `3.mlp.up_proj`) or a block
(`model.layers.3`, or `3`); a linear's own key takes precedence over its block's.  Linears have the
names of their checkpoint, as result.json has them, or of their modules.  A .csv has two
columns, name and sparsity, with or without a header.  The result.json of a run gives that run's
rates.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsemend.sparse.pattern import Pattern

# a linear's name from its block's index on, which is its first part that is a number
WITHIN = re.compile(r"(?:(?!\d+\.)[^.]+\.)*(\d+\..+)")
BLOCK = re.compile(r"(?:.*\.)?(\d+)")
UNCHANGED: Mapping[str, str] = {}  # linears whose files call them as the model does
SUFFIXES = (".yaml", ".yml", ".json", ".csv")


def read_rates(path: Path) -> dict[str, float]:
    """Key -> sparsity in [0, 1]; raises FileNotFoundError, or ValueError naming the bad entry."""
    if not path.is_file():
        raise FileNotFoundError(
            f"sparsity_schedule.path={path} does not exist; give a .yaml, .json or .csv of rates "
            "(linear or block: sparsity), or a run's result.json"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f"sparsity_schedule.path={path} is not one of {', '.join(SUFFIXES)}")
    text = path.read_text(encoding="utf-8")
    entries = _of_csv(text) if path.suffix == ".csv" else _of_mapping(path, text)
    rates = {}
    for key, value in entries:
        number = _number(value)
        if not 0 <= number <= 1:
            raise ValueError(f"{path}: {key}: sparsity {value} is not in [0, 1]")
        if key in rates:
            raise ValueError(f"{path}: {key} stands there twice; remove one")
        rates[key] = number
    return rates


def by_module(rates: Mapping[str, float], saved: Mapping[str, str]) -> dict[str, float]:
    """The rates with module names for saved ones; raises ValueError where both name one linear.

    saved: module name -> saved name; the part before the block's index is not compared.
    """
    modules = {_within(other): name for name, other in saved.items() if other != name}
    keys: dict[str, str] = {}
    for key in rates:
        name = modules.get(_within(key), key)
        if name in keys:
            raise ValueError(f"{keys[name]!r} and {key!r} name the same place; remove one")
        keys[name] = key
    return {name: rates[key] for name, key in keys.items()}


def by_linear(
    rates: Mapping[str, float], linears: Collection[str], saved: Mapping[str, str] = UNCHANGED
) -> dict[str, float]:
    """The rate of every linear; raises ValueError naming linears without one and unused keys.

    linears: full names; the part before the block's index is not compared.  saved: their names in
    messages, where these are others.
    """
    short = {name: _within(name) for name in linears}
    _check_distinct(rates, set(short.values()))
    inside = {_within(key): rate for key, rate in rates.items() if _within(key) in short.values()}
    others = {key: rate for key, rate in rates.items() if _within(key) not in short.values()}
    blocks = {match[1]: rate for key, rate in others.items() if (match := BLOCK.fullmatch(key))}
    indices = {name.split(".")[0] for name in short.values()}
    extra = [key for key in others if not (m := BLOCK.fullmatch(key)) or m[1] not in indices]
    if extra:
        example = next(iter(short))
        raise ValueError(
            f"{len(extra)} keys name no linear and no block of this model, first {extra[0]!r}; "
            f"a linear is for example {_within(saved.get(example, example))!r}, a block "
            f"{min(indices)!r}"
        )
    by_name = {name: inside.get(key, blocks.get(key.split(".")[0])) for name, key in short.items()}
    missing = [name for name, rate in by_name.items() if rate is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(by_name)} linears have no rate, first "
            f"{saved.get(missing[0], missing[0])}; give each linear or its block one"
        )
    return {name: rate for name, rate in by_name.items() if rate is not None}


def check_rates(
    rates: Mapping[str, float],
    sizes: Mapping[str, int],
    sparsity: float,
    pattern: Pattern,
    tolerance: float,
    saved: Mapping[str, str] = UNCHANGED,
) -> None:
    """Raise ValueError on a mean off `sparsity`, or a rate that a mixed pattern cannot keep.

    The weighted mean may be off by `tolerance`; a mixed pattern needs a whole N >= 1 of every rate.
    saved: as in `by_linear`.
    """
    if pattern.mixed:
        for linear, rate in rates.items():
            name = saved.get(linear, linear)
            try:
                kept = pattern.at(rate).kept
            except ValueError as error:
                raise ValueError(f"{name}: {error}; pattern {pattern} needs whole N") from error
            if kept < 1:
                raise ValueError(f"{name}: sparsity {rate} keeps none of {pattern.group_size}")
    total = sum(sizes[name] for name in rates)
    mean = math.fsum(rate * sizes[name] for name, rate in rates.items()) / total
    if abs(mean - sparsity) > tolerance:
        raise ValueError(
            f"the rates of sparsity_schedule.path have the parameter-weighted mean {mean:.6f}, not "
            f"sparsity={sparsity}; set sparsity={mean:.6f}, mend the rates, or raise "
            f"sparsity_schedule.tolerance={tolerance:g}"
        )


def _within(name: str) -> str:
    match = WITHIN.fullmatch(name)
    return match[1] if match else name


def _check_distinct(rates: Mapping[str, float], linears: Collection[str]) -> None:
    """Raise ValueError where two keys name one block or linear, in full and in short.

    linears: short names; one may end in a number, as a block's does.
    """
    first: dict[str, str] = {}
    for key in rates:
        block = BLOCK.fullmatch(key)
        name = _within(key) if _within(key) in linears or block is None else block[1]
        if name in first:
            raise ValueError(f"{first[name]!r} and {key!r} name the same place; remove one")
        first[name] = key


def _of_csv(text: str) -> list[tuple[str, Any]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise ValueError(
            f"{','.join(wrong)!r} is not a row of two columns, name and sparsity; a name with a "
            "comma in it stands in double quotes"
        )
    if rows and math.isnan(_number(rows[0][1])):
        rows = rows[1:]  # a header
    return [(name.strip(), value) for name, value in rows]


class _DistinctLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own loaders take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # before what a merge (<<) brings, which a key of the mapping's own may replace
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        _distinct([(self.construct_object(key, deep=True), None) for key in written])
        return super().construct_mapping(node, deep)


def _distinct(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as a dict; raises ValueError on a key that stands twice."""
    twice = next((key for key, count in Counter(k for k, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands there twice; remove one")
    return dict(pairs)


def _of_mapping(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_distinct)
        else:
            content = yaml.load(text, _DistinctLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of linear or block to sparsity")
    if str(content.get("schema", "")).startswith("sparsemend-result"):
        per_linear = content["sparsity"].get("per_linear", {})
        return [(name, entry["asked"]) for name, entry in per_linear.items()]
    return [(str(key), value) for key, value in content.items()]


def _number(value: Any) -> float:
    """`value` as a float; NaN, which lies in no range, where it is not a number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
