"""A declaration: the values that a key may have, read from its line in a yaml.

The default gives the type, the comment the rest:

    max_steps: 100  # optimizer steps, in [1, inf)
    threads: null  # int in [1, inf), torch threads; null: what the machine offers
    form: plain  # plain (one product) | checkpointed: one function, two costs
    betas: [0.9, 0.95]  # list of 2 floats in [0, 1), of AdamW

Bounds stand anywhere.  A type (`int`, `float`, `bool`, `str`, `list`, `mapping`, `list of TYPE`,
several with `or`) or choices stand at the beginning and end at a colon, semicolon or comma; text in
parentheses is skipped.  In a choice a capital letter stands for a number and a word in capitals for
any text: `cuda:N`, `FOLDER`.  null is legal where it is the default or the comment names it.
Any other comment is prose, and the type of the default alone is held.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

MISSING = "???"
TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "list": list, "mapping": dict}
NOUNS = {
    "int": ("an integer", "integers"),
    "float": ("a number", "numbers"),
    "bool": ("true or false", "true and false"),
    "str": ("a string", "strings"),
    "list": ("a list", "lists"),
    "mapping": ("a mapping {KEY: VALUE}", "mappings"),
}
NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf)"
BOUNDS = re.compile(rf"\bin ([\[(])({NUMBER}), ({NUMBER})([\])])")
PARENTHESES = re.compile(r"\s*\([^()]*\)")
TYPE = rf"(?:{'|'.join(TYPES)})"
HEAD = re.compile(rf"(?:(list) of (?:(\d+) )?)?({TYPE}s?(?: or {TYPE}s?)*)")
REFERENCE = re.compile(r"\$\{(\.*[\w.]+)\}")


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers, with or without its ends."""

    low: float
    high: float
    low_is_in: bool
    high_is_in: bool

    def hold(self, value: float) -> bool:
        """Whether the value, which may be NaN, lies in the interval."""
        above = self.low <= value if self.low_is_in else self.low < value
        below = value <= self.high if self.high_is_in else value < self.high
        return above and below

    def __str__(self) -> str:
        if self.high == float("inf") and self.low > -self.high:
            return f"of at least {self.low:g}" if self.low_is_in else f"above {self.low:g}"
        left, right = "[" if self.low_is_in else "(", "]" if self.high_is_in else ")"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The values that a key may have.

    kinds: names of TYPES; without any every value is legal.  elements: kinds of a list's elements,
    which bounds and choices then apply to.  reference: the key, relative or absolute, whose value
    is the default.  explicit: the comment says more than prose.  unread: the comment has ` | `
    outside parentheses and yet no list of choices that holds the default.
    """

    default: Any
    null: bool
    kinds: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    length: int | None = None
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None
    reference: str | None = None
    explicit: bool = False
    unread: bool = False

    @property
    def readable(self) -> bool:
        """Whether a reader learns the values: a type, with bounds where it is a number."""
        numbers = {"int", "float"} & {*self.kinds, *self.elements}
        said = bool(self.choices) or (bool(self.kinds) and (self.bounds or not numbers))
        return bool(said) and not self.unread

    def accepts(self, value: Any) -> bool:
        """Whether the key may have this plain value."""
        if value is None:
            return self.null
        if isinstance(value, list) and "list" in self.kinds:
            counted = self.length is None or len(value) == self.length
            return counted and all(self._holds(item, self.elements) for item in value)
        return self._holds(value, self.kinds)

    def _holds(self, value: Any, kinds: tuple[str, ...]) -> bool:
        if kinds and not any(is_a(kind, value) for kind in kinds):
            return False
        if self.choices and not any(_matches(choice, value) for choice in self.choices):
            return False
        return self.bounds is None or not is_a("float", value) or self.bounds.hold(value)

    def inherit_from(self, base: Declaration) -> Declaration:
        """This line with what it leaves unsaid taken from the line that it overrides."""
        null = self.null or base.null
        if self.explicit:
            return replace(
                self,
                null=null,
                kinds=self.kinds or base.kinds,
                elements=self.elements or base.elements,
                length=self.length or base.length,
            )
        if _is_open(self.default) or base.accepts(self.default):
            kinds = base.kinds or self.kinds
            return replace(
                base, default=self.default, null=null, kinds=kinds, reference=self.reference
            )
        return self

    def beside(self, other: Declaration) -> Declaration:
        """What two yamls that may both be the source of a value allow together.

        A line that says more than its default stands where it allows the other's default.
        """
        null = self.null or other.null
        for one, two in ((self, other), (other, self)):
            allows = _is_open(two.default) or two.default is None or one.accepts(two.default)
            if one.explicit and not two.explicit and allows:
                return replace(one, null=null)
        same_values = (self.choices, self.bounds, self.elements, self.length) == (
            other.choices,
            other.bounds,
            other.elements,
            other.length,
        )
        if same_values and self.kinds == other.kinds:
            return replace(self, null=null)
        kinds = (*self.kinds, *(kind for kind in other.kinds if kind not in self.kinds))
        widest = kinds if self.kinds and other.kinds else ()
        return Declaration(default=self.default, null=null, kinds=widest)

    def __str__(self) -> str:
        if self.choices:
            listed = ", ".join(c for c in self.choices if c != "null")
            return f"one of {listed}" + (", null" if self.null else "")
        words = [self._noun(kind) for kind in self.kinds]
        return ", or ".join([*words, *(["null"] if self.null else [])])

    def legal(self, value: Any) -> str:
        """What a wrong value is not, in words; of a number that is out of bounds the bounds."""
        if is_a("float", value) and self.bounds and self.kinds == ("float",):
            return str(self.bounds).removeprefix("of ")
        if self.choices and self.kinds == ("list",) and not isinstance(value, list):
            return str(self).replace("one of", "a list of", 1)
        return str(self)

    def wrong_elements(self, value: Any) -> list[Any]:
        """The elements of a list that it may not hold."""
        if not isinstance(value, list) or "list" not in self.kinds:
            return []
        return [item for item in value if not self._holds(item, self.elements)]

    def _noun(self, kind: str) -> str:
        count = "" if self.length is None else f"{self.length} "
        if kind == "list" and self.elements:
            inner = " or ".join(NOUNS[element][1] for element in self.elements)
            return f"a list of {count}{inner}" + (f" {self.bounds}" if self.bounds else "")
        bounded = self.bounds is not None and kind in ("int", "float")
        return NOUNS[kind][0] + (f" {self.bounds}" if bounded else "")

    def example(self, value: Any) -> Any:
        """A legal value: the choice nearest to a wrong one, else the default; None if unknown."""
        literal = [c for c in self.choices if not re.search("[A-Z]", c) and c != "null"]
        if self.kinds == ("list",) and literal:
            items = value if isinstance(value, list) else [value]
            near = [n for item in items for n in difflib.get_close_matches(str(item), literal, n=1)]
            if near and self.accepts(near):
                return near
        elif near := difflib.get_close_matches(str(value), literal, n=1):
            return near[0]
        if not _is_open(self.default) and self.accepts(self.default):
            return self.default
        return literal[0] if literal else None


def declaration(default: Any, comment: str) -> Declaration:
    """The declaration that a default, a plain value or MISSING, and its comment make."""
    interval = BOUNDS.search(comment)
    head = _head(comment)
    kinds, elements, length = _kinds(head)
    choices = _choices(head)
    if choices and head.startswith("list of "):
        kinds, elements = ("list",), ("str",)
    elif choices:
        kinds = ("str", "int", "float", *(("bool",) if {"true", "false"} & {*choices} else ()))
    reference = REFERENCE.fullmatch(default) if isinstance(default, str) else None
    unsaid = default is None or _is_open(default)
    explicit = bool(kinds or interval)
    result = Declaration(
        default=default,
        null=default is None or "null" in re.findall(r"\w+", comment),
        kinds=kinds or (() if unsaid else (kind_of(default),)),
        elements=elements,
        length=length,
        choices=choices,
        bounds=_bounds(interval) if interval else None,
        reference=reference.group(1) if reference else None,
        explicit=explicit,
        unread=" | " in _without_parentheses(comment) and not choices,
    )
    if explicit and not unsaid and not result.accepts(default):  # the comment means something else
        return replace(declaration(default, ""), null=result.null, unread=True)
    return result


def _is_open(default: Any) -> bool:
    """Whether a default is known in a composed config alone: MISSING, or an interpolation."""
    return isinstance(default, str) and (default == MISSING or "${" in default)


def is_a(kind: str, value: Any) -> bool:
    """Whether a plain value is of a kind of TYPES; true and false are no numbers."""
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, TYPES[kind])  # type: ignore[arg-type]


def kind_of(value: Any) -> str:
    """The kind of TYPES that a default has; an integer is an int alone."""
    return next(kind for kind in TYPES if is_a(kind, value))


def text_of(value: Any) -> str:
    """A plain value as an override writes it: true, null, [a,b], {a:1}."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "}"
    text = str(value)
    return text if text.isprintable() else json.dumps(text)


def _head(comment: str) -> str:
    """The beginning of a comment, where a type or choices stand."""
    text = _without_parentheses(BOUNDS.sub("", comment))
    return re.split(r"(?:[:;,.] |[:;,.]?$)", text, maxsplit=1)[0].strip()


def _without_parentheses(text: str) -> str:
    while (shorter := PARENTHESES.sub("", text)) != text:
        text = shorter
    return text


def _kinds(head: str) -> tuple[tuple[str, ...], tuple[str, ...], int | None]:
    """(kinds, kinds of elements, number of elements) that a comment begins with; empty for none."""
    match = HEAD.fullmatch(head)
    if match is None:
        return (), (), None
    names = tuple(name if name in TYPES else name[:-1] for name in match.group(3).split(" or "))
    if match.group(1) is None:
        return names, (), None
    return ("list",), names, int(match.group(2)) if match.group(2) else None


def _choices(head: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in head.removeprefix("list of ").split(" | "))
    if len(words) < 2 or any(len(word.split()) != 1 for word in words):
        return ()
    return words


def _matches(choice: str, value: Any) -> bool:
    """Whether a value is a choice, in which N stands for a number and WORD for any text."""
    pattern = re.sub(r"[A-Z]{2,}", ".+", re.escape(choice))
    return re.fullmatch(re.sub(r"(?<![.])[A-Z]", r"\\d+", pattern), text_of(value)) is not None


def _bounds(match: re.Match[str]) -> Bounds:
    left, low, high, right = match.groups()
    return Bounds(float(low), float(high), left == "[", right == "]")
