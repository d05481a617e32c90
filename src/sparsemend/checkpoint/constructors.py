"""The linears that transformers' classes of a model build, and their sizes, read as text.

    self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim)

Importing a class takes seconds, as it takes torch along.  Here the constructors of its module are
followed with the values of config.json, and with the defaults that the module of its config has:
assignments, arithmetic, and branches whose condition has a value.  Whatever else a constructor does
leaves a size unknown, never wrong; a branch without a value is followed both ways.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsemend.checkpoint.expressions import UNKNOWN, Scope, value_of


@dataclass(frozen=True)
class BuiltLinear:
    """A weight as one constructor builds it; None: not known.

    shape: of the tensor, as saved; bias: whether there is one.
    """

    shape: tuple[int | None, int | None]
    bias: bool | None


@dataclass
class Construction(Scope):
    """One constructor as it is followed; built: attribute and linear, None for anything else."""

    built: list[tuple[str, BuiltLinear | None]] = field(default_factory=list)


def built_linears(
    module: ast.Module, config: Mapping[str, Any], config_class: str
) -> dict[str, list[BuiltLinear | None]]:
    """Attribute -> what each constructor of a module builds there; None: something else.

    config: complete values by name, as `complete` gives them; config_class: of which class.
    """
    by_attribute: dict[str, list[BuiltLinear | None]] = {}
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        scope = Construction(config)
        for constructor in _constructors(node, classes):
            scope.names, scope.reads_config = {}, _takes(constructor, config_class)
            _follow(constructor.body, scope, classes)
        for name, linear in scope.built:
            by_attribute.setdefault(name, []).append(linear)
    return by_attribute


def _constructors(
    node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]
) -> Iterator[ast.FunctionDef]:
    """The constructors of the classes that it inherits from in its module, then its own."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id != node.name:
            yield from _constructors(classes[base.id], classes)
    yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")


def _takes(constructor: ast.FunctionDef, config_class: str) -> bool:
    """Whether the parameter `config` of a constructor is of this class, or of one not written."""
    for argument in constructor.args.args:
        if argument.arg == "config":
            return argument.annotation is None or ast.unparse(argument.annotation) == config_class
    return False


def complete(module: ast.Module, config_class: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The values that an object of a config class has: stated ones, defaults, what it works out.

    A name that the class does not have, or gets in a way not followed here, is left out.
    """
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    node = classes[config_class]
    values: dict[str, Any] = {}
    for line in node.body:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
            if isinstance(target, ast.Name):
                values[target.id] = _literal(line.value)
    renamed = values.get("attribute_map", UNKNOWN)
    renamed = renamed if isinstance(renamed, dict) else {}
    declared_names = set(values)
    stated = {renamed.get(name, name): value for name, value in stated.items()}
    values |= stated
    scope = Construction(values, attributes=values)
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__post_init__":
            _follow(function.body, scope, {})
    values = scope.attributes  # no longer the same object where branches were followed both ways
    # what the class does not declare is set last
    values |= {name: value for name, value in stated.items() if name not in declared_names}
    values |= {old: values[new] for old, new in renamed.items() if new in values}
    return {name: value for name, value in values.items() if value is not UNKNOWN}


def _literal(node: ast.expr | None) -> Any:
    try:
        return UNKNOWN if node is None else ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def _follow(
    body: Iterable[ast.stmt], scope: Construction, classes: Mapping[str, ast.ClassDef]
) -> None:
    """Carry out the statements of a constructor in a scope, as far as they are understood."""
    for line in body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            for target in targets:
                _assign(target, line.value, scope, classes)
        elif isinstance(line, ast.If):
            condition = value_of(line.test, scope)
            if condition is UNKNOWN:
                _follow_both(line, scope, classes)
            else:
                _follow(line.body if condition else line.orelse, scope, classes)
        elif not isinstance(line, ast.Expr | ast.Raise | ast.Pass | ast.Assert | ast.Return):
            _forget(line, scope)


def _follow_both(line: ast.If, scope: Construction, classes: Mapping[str, ast.ClassDef]) -> None:
    """Follow both branches; what they do not agree in is unknown."""
    before = dict(scope.attributes), dict(scope.names)
    _follow(line.body, scope, classes)
    one = scope.attributes, scope.names
    scope.attributes, scope.names = before
    _follow(line.orelse, scope, classes)
    for values, others in zip((scope.attributes, scope.names), one, strict=True):
        for name in values.keys() | others.keys():
            if values.get(name, UNKNOWN) != others.get(name, UNKNOWN):
                values[name] = UNKNOWN


def _forget(line: ast.stmt, scope: Construction) -> None:
    """Leave unknown whatever a loop, a context or the like may assign."""
    for node in ast.walk(line):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            scope.attributes[node.attr] = UNKNOWN
            scope.built.append((node.attr, None))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            scope.names[node.id] = UNKNOWN


def _assign(
    target: ast.expr, value: ast.expr, scope: Construction, classes: Mapping[str, ast.ClassDef]
) -> None:
    replaced = ast.unparse(target) in ("config", "self.config") and ast.unparse(value) != "config"
    scope.reads_config = scope.reads_config and not replaced
    if isinstance(target, ast.Name):
        scope.names[target.id] = value_of(value, scope)
    elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
        scope.attributes[target.attr] = value_of(value, scope)
        scope.built.append((target.attr, _linear(value, scope, classes)))
    elif isinstance(target, ast.Tuple):
        for element in target.elts:
            _assign(element, ast.Constant(...), scope, classes)


def _linear(
    value: ast.expr, scope: Construction, classes: Mapping[str, ast.ClassDef]
) -> BuiltLinear | None:
    """The linear, Conv1D or embedding that an expression builds; None for anything else."""
    if not isinstance(value, ast.Call) or len(value.args) < 2:
        return None
    name = ast.unparse(value.func)
    first, second = (_size(value_of(argument, scope)) for argument in value.args[:2])
    if name == "nn.Embedding":
        return BuiltLinear((first, second), bias=False)
    if name == "Conv1D":  # (outputs, inputs), saved the other way round
        return BuiltLinear((second, first), bias=True)
    if name == "nn.Linear" or _is_linear(classes.get(name)):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        bias = value.args[2] if len(value.args) > 2 else keywords.get("bias", ast.Constant(True))
        has_bias = value_of(bias, scope)
        return BuiltLinear((second, first), has_bias if isinstance(has_bias, bool) else None)
    return None


def _is_linear(node: ast.ClassDef | None) -> bool:
    """Whether a class is nn.Linear but for its forward."""
    return (
        node is not None
        and [ast.unparse(base) for base in node.bases] == ["nn.Linear"]
        and not any(isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in node.body)
    )


def _size(value: Any) -> int | None:
    return value if type(value) is int else None
