"""Many linears in few words: those whose names differ in numbers alone stand in one (no torch).

`layers.*.experts.{1,3-5}.up` are experts 1, 3, 4 and 5 of every block.  A `*` stands for all the
numbers that a model has there, and for no fewer; names that the braces would make too many words
of are counted: `37 of 384 of layers.*.experts.*.up`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)|(?<=\[)\d+(?=[],])")
MOST = 4  # entries of one kind; more are counted

Numbers = tuple[int, ...]


def star_numbers(name: str) -> str:
    """The name with `*` for its numbers."""
    return NUMBER.sub("*", name)


def kinds(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """An entry for the names that differ in numbers alone, or a few where they need them.

    among: the names of all linears, of which `names` are some.
    """
    chosen, every = _by_kind(names), _by_kind(among)
    entries = []
    for kind, rows in chosen.items():
        if "*" not in kind:
            entries.append(kind)
            continue
        universe = every.get(kind, rows)
        products = [_fill_stars(kind, parts) for parts in _products(rows, universe)]
        if len(products) > MOST:
            products = [f"{len(rows)} of {len(universe)} of {kind}"]
        entries += products
    return entries


def _by_kind(names: Iterable[str]) -> dict[str, list[Numbers]]:
    alike: dict[str, dict[Numbers, None]] = {}
    for name in names:
        numbers = tuple(int(number) for number in NUMBER.findall(name))
        alike.setdefault(star_numbers(name), {})[numbers] = None
    return {kind: list(rows) for kind, rows in alike.items()}


def _products(rows: Iterable[Numbers], universe: Iterable[Numbers]) -> list[list[str]]:
    """The rows as few products of sets of numbers, each written out: `["*", "{1,3}"]`.

    First numbers with the same rows of further ones, of the same universe, make one set.
    """
    some, every = _by_first(rows), _by_first(universe)
    groups: dict[tuple[frozenset[Numbers], frozenset[Numbers]], list[int]] = {}
    for first, rest in some.items():
        key = frozenset(rest), frozenset(every.get(first, rest))
        groups.setdefault(key, []).append(first)
    products = []
    for (same, all_same), firsts in groups.items():
        head = _set(sorted(firsts), len(every))
        if same == {()}:
            products.append([head])
        else:
            inner = _products(sorted(same), sorted(all_same))
            products += [[head, *product] for product in inner]
    return products


def _by_first(rows: Iterable[Numbers]) -> dict[int, list[Numbers]]:
    by_first: dict[int, list[Numbers]] = {}
    for row in rows:
        by_first.setdefault(row[0], []).append(row[1:])
    return by_first


def _set(numbers: Sequence[int], of: int) -> str:
    """Ascending numbers as one, as `*` where they are all of several, else in braces."""
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) == of:
        return "*"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(map(_run, runs)) + "}"


def _run(run: Sequence[int]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run))


def _fill_stars(kind: str, parts: Sequence[str]) -> str:
    """A starred name with its stars replaced in turn."""
    pieces = kind.split("*")
    return "".join(a + b for a, b in zip(pieces, [*parts, ""], strict=True))
