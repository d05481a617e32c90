"""Declarations of our yamls, and of a user's own, read from their lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import compose

from sparsemend.config.declaration import MISSING, declaration
from sparsemend.config.declared import declarations, declared_in, with_included
from sparsemend.config.locations import conf_folder

GROUPS = (
    "cache",
    "data",
    "evaluation",
    "hardware",
    "logger",
    "method",
    "model",
    "pruner",
    "sparsity_schedule",
    "training",
)
YAMLS = sorted(path for group in GROUPS for path in (conf_folder() / group).rglob("*.yaml"))


@pytest.mark.parametrize(
    ("comment", "legal", "wrong"),
    [
        ("optimizer steps, in [1, inf)", [1, 7], [0, 1.5, "abc", True, None, [1]]),
        ("in (0, 10]; null: all", [1, 10, None], [0, 11]),
        ("prose alone", [-5, 0], ["x", 1.0]),
        ("float in (0, inf)", [0.5, 3], [0, "x"]),
        ("0 (as coded) | 1 (exact): an age", [0, 1], [2, "x", 0.5]),
    ],
)
def test_an_integer_is_declared_by_its_default_and_comment(
    comment: str, legal: list[object], wrong: list[object]
) -> None:
    declared = declaration(1, comment)
    assert [value for value in legal if not declared.accepts(value)] == []
    assert [value for value in wrong if declared.accepts(value)] == []


def test_a_number_may_be_whole_and_is_never_nan_within_bounds() -> None:
    declared = declaration(0.5, "in [0, 1)")
    assert all(map(declared.accepts, (0, 0.99)))
    assert not any(map(declared.accepts, (1, float("nan"), "0.5", True)))


def test_a_switch_is_true_or_false_alone() -> None:
    declared = declaration(False, "write model/")
    assert declared.accepts(True)
    assert not any(map(declared.accepts, ("ja", "true", 1, None)))


def test_choices_end_at_a_colon_and_skip_parentheses() -> None:
    declared = declaration("plain", "plain (one product | two; a, b: c) | checked: two costs")
    assert declared.choices == ("plain", "checked")


def test_a_capital_stands_for_a_number_and_a_word_in_capitals_for_any_text() -> None:
    declared = declaration("cpu", "cpu | cuda:N | FOLDER/masks")
    assert all(map(declared.accepts, ("cpu", "cuda:1", "/a/b/masks")))
    assert not any(map(declared.accepts, ("cuda", "cuda:x", "masks")))


def test_choices_may_list_null() -> None:
    declared = declaration("a", "null | a | b")
    assert declared.accepts(None)
    assert not declared.accepts("c")


def test_a_list_is_held_to_its_length_and_every_element_to_its_bounds() -> None:
    declared = declaration([0.9, 0.95], "list of 2 floats in [0, 1), of AdamW")
    assert declared.accepts([0, 0.5])
    assert not any(map(declared.accepts, ([0.9], [0.9, 1], ["a", "b"], 0.9, [True, False])))


def test_every_element_of_a_list_of_choices_is_one_of_them() -> None:
    declared = declaration([], "list of dense | csr: forms")
    assert all(map(declared.accepts, (["csr", "dense"], [])))
    assert not declared.accepts(["csr", "bsr"])


def test_a_default_of_null_without_a_type_allows_anything() -> None:
    declared = declaration(None, "whatever you like")
    assert all(map(declared.accepts, (None, 1, "a", [1], {"a": 1})))
    assert not declared.readable


def test_several_types_are_joined_by_or() -> None:
    declared = declaration(None, "str or list, file(s)")
    assert all(map(declared.accepts, ("a", ["a"], None)))
    assert not declared.accepts(3)


def test_a_comment_that_its_own_default_contradicts_is_prose() -> None:
    declared = declaration(5, "in [6, 9] of the papers")
    assert all(map(declared.accepts, (5, 100)))
    assert not declared.accepts("x")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(conf_folder())))
def test_every_key_of_our_yamls_says_its_values_and_its_default_is_one(path: Path) -> None:
    entries = with_included(path, (conf_folder(),))
    own = declared_in(path)
    unreadable = [
        key
        for key, entry in entries.items()
        if key in own and entry.reference is None and not entry.readable
    ]
    assert unreadable == [], f"{path} does not say the type, bounds or choices of these keys"
    open_defaults = [e for e in own.values() if isinstance(e.default, str) and "${" in e.default]
    wrong = {
        key: own[key].default
        for key, entry in entries.items()
        if key in own
        and own[key] not in open_defaults
        and own[key].default != MISSING
        and not entry.accepts(own[key].default)
    }
    assert wrong == {}


def test_an_experiment_that_sets_a_key_of_run_yaml_does_not_declare_it(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nprunable:\n  include: [q_proj]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    declared = declarations(compose("run"), (tmp_path,))["prunable.include"]
    assert declared.accepts(None)
    assert declared.accepts(["q_proj"])


def test_every_key_of_a_run_says_its_values() -> None:
    entries = declared_in(conf_folder() / "run.yaml")
    assert [key for key, entry in entries.items() if not entry.readable] == []
