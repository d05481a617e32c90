"""What transformers' constructors build is told from their text."""

from __future__ import annotations

import ast
from textwrap import dedent
from typing import Any

import pytest

from sparsemend.checkpoint.constructors import BuiltLinear, built_linears, complete

CONFIG = {"width": 8, "heads": 2, "inner": 12, "biased": True, "sizes": [3, 5], "none": None}


def built(body: str, *, before: str = "", config: dict[str, Any] = CONFIG) -> Any:
    """What `self.x` of a class is, whose constructor has this body."""
    lines = "".join(f"        {line}\n" for line in dedent(body).strip().splitlines())
    text = f"{before}\nclass A(nn.Module):\n    def __init__(self, config: C, layer=0):\n{lines}"
    return built_linears(ast.parse(text), config, "C").get("x")


@pytest.mark.parametrize(
    ("body", "shape", "bias"),
    [
        ("self.x = nn.Linear(config.width, 4 * config.inner)", (48, 8), True),
        ("self.x = nn.Linear(config.width, 3, bias=config.biased)", (3, 8), True),
        ("self.x = nn.Linear(config.width, 3, bias=config.absent)", (3, 8), None),
        ("self.x = nn.Linear(config.width, config.absent, False)", (None, 8), False),
        ("self.d = config.width // config.heads\nself.x = nn.Linear(1, self.d)", (4, 1), True),
        ("self.x = Conv1D(config.inner, config.width)", (8, 12), True),
        ("self.x = nn.Embedding(config.inner, config.width, 0)", (12, 8), False),
        ("n = config.none or config.inner\nself.x = nn.Linear(n, 1)", (1, 12), True),
        ("n = config.inner if layer else config.width\nself.x = nn.Linear(n, 1)", (1, None), True),
        ("self.x = nn.Linear(config.sizes[1], config.sizes[layer])", (None, 5), True),
        ("n = 1\nn += 1\nself.x = nn.Linear(n, config.width)", (8, None), True),
        ("n = 1\nfor n in config.sizes:\n    pass\nself.x = nn.Linear(n, 2)", (2, None), True),
        ("n = getattr(config, 'heads', 5)\nself.x = nn.Linear(n, max(n, 3))", (3, 2), True),
        ("n = getattr(config, 'absent', 5)\nself.x = nn.Linear(n, 3)", (3, None), True),
        ("config = config.inner_config\nself.x = nn.Linear(config.width, 3)", (3, None), True),
        ("self.config = other\nself.x = nn.Linear(self.config.width, 3)", (3, None), True),
    ],
)
def test_sizes_follow_from_the_config_or_stay_unknown(
    body: str, shape: tuple[int | None, int | None], bias: bool | None
) -> None:
    assert built(body) == [BuiltLinear(shape, bias)]


def test_a_branch_with_a_value_is_followed_and_one_without_both_ways() -> None:
    branches = """
        if config.{}:
            self.x = nn.Linear(1, 2)
        else:
            self.x = nn.Linear(3, 4)
    """
    assert built(branches.format("biased")) == [BuiltLinear((2, 1), bias=True)]
    both = [BuiltLinear((2, 1), bias=True), BuiltLinear((4, 3), bias=True)]
    assert built(branches.format("absent")) == both


def test_what_a_loop_or_another_class_builds_is_something_else() -> None:
    assert built("self.x = Router(config)") == [None]
    assert built("for i in y:\n    self.x = nn.Linear(1, 2)") == [None]


def test_a_linear_with_a_forward_of_its_own_is_one_and_with_a_constructor_is_not() -> None:
    own = "class L(nn.Linear):\n    def {}(self, x):\n        pass\n"
    assert built("self.x = L(2, 3)", before=own.format("forward")) == [BuiltLinear((3, 2), True)]
    assert built("self.x = L(2, 3)", before=own.format("__init__")) == [None]


def test_a_class_has_what_its_base_builds() -> None:
    text = """
    class A(nn.Module):
        def __init__(self, config):
            self.n = config.width
    class B(A):
        def __init__(self, config):
            super().__init__(config)
            self.x = nn.Linear(self.n, 3)
    """
    assert built_linears(ast.parse(dedent(text)), CONFIG, "C")["x"] == [BuiltLinear((3, 8), True)]


def test_the_config_of_another_class_says_nothing() -> None:
    text = "class A:\n def __init__(self, config: D):\n  self.x = nn.Linear(config.width, 3)"
    assert built_linears(ast.parse(text), CONFIG, "C")["x"] == [BuiltLinear((3, None), True)]


def test_a_config_is_completed_by_its_defaults_and_what_it_works_out() -> None:
    text = """
    class C(PreTrainedConfig):
        attribute_map = {"width": "n_embd"}
        n_embd: int = 8
        heads: int = 2
        head_dim: int | None = None
        kinds: list[str] | None = None

        def __post_init__(self, **kwargs):
            if self.head_dim is None:
                self.head_dim = self.n_embd // self.heads
            if self.kinds is None:
                self.kinds = [name for name in kwargs]
            self.taken = kwargs.pop("taken", 1)
    """
    module = ast.parse(dedent(text))
    values = complete(module, "C", {"width": 32, "more": 1})
    assert {name: values[name] for name in ("width", "n_embd", "head_dim", "more")} == {
        "width": 32,
        "n_embd": 32,
        "head_dim": 16,
        "more": 1,
    }
    assert {"kinds", "taken"}.isdisjoint(values)
    assert complete(module, "C", {"head_dim": 3})["head_dim"] == 3
    assert complete(module, "C", {"taken": 3})["taken"] == 3  # of no field: set at the end
