"""The value of a Python expression that is read and not run, where constructors of models need one.

What is not understood has no value: names from elsewhere, calls but for a few, comprehensions.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Unknown:
    """A value that the text does not give."""


UNKNOWN = Unknown()
OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
    ast.Not: operator.not_,
    ast.USub: operator.neg,
}
CALLS: Mapping[str, Callable[..., Any]] = {"int": int, "max": max, "min": min, "round": round}


@dataclass
class Scope:
    """The names inside one constructor.

    attributes: of `self`; config: those of the parameter `config`, where it reads_config.
    """

    config: Mapping[str, Any]
    reads_config: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)


def value_of(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression, UNKNOWN where it is not understood."""
    try:
        return _evaluate(node, scope)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError):
        return UNKNOWN


def _evaluate(node: ast.expr, scope: Scope) -> Any:
    """As `value_of`; raises what Python would where a part has no value."""
    if isinstance(node, ast.Constant):
        return UNKNOWN if node.value is ... else node.value
    if isinstance(node, ast.Name):
        return scope.names[node.id]
    if isinstance(node, ast.Attribute):
        return _attribute(ast.unparse(node.value), node.attr, scope)
    if isinstance(node, ast.IfExp):
        condition = _require(node.test, scope)
        return _evaluate(node.body if condition else node.orelse, scope)
    if isinstance(node, ast.BoolOp):
        stops = isinstance(node.op, ast.Or)
        for part in node.values:
            value = _require(part, scope)
            if bool(value) is stops:
                break
        return value
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](_require(node.operand, scope))
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_require(node.left, scope), _require(node.right, scope))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        compared = node.comparators[0]
        return OPERATORS[type(node.ops[0])](_require(node.left, scope), _require(compared, scope))
    if isinstance(node, ast.Subscript):
        return _require(node.value, scope)[_require(node.slice, scope)]
    if isinstance(node, ast.List | ast.Tuple):
        return [_require(element, scope) for element in node.elts]
    if isinstance(node, ast.Call) and not node.keywords:
        return _call(node, scope)
    raise ValueError("not understood")


def _call(node: ast.Call, scope: Scope) -> Any:
    name = ast.unparse(node.func)
    if name == "getattr" and len(node.args) == 3 and isinstance(node.args[1], ast.Constant):
        # a default counts only where the config's class surely lacks the name, which is not seen
        return _attribute(ast.unparse(node.args[0]), str(node.args[1].value), scope)
    return CALLS[name](*(_require(argument, scope) for argument in node.args))


def _require(node: ast.expr, scope: Scope) -> Any:
    """The value of a part; raises ValueError where it is unknown."""
    value = _evaluate(node, scope)
    if value is UNKNOWN:
        raise ValueError("unknown")
    return value


def _attribute(owner: str, name: str, scope: Scope) -> Any:
    if owner == "self":
        return scope.attributes[name]
    if owner in ("config", "self.config") and scope.reads_config:
        return scope.config[name]
    raise KeyError(name)
