"""What a label of a suite stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemend.bench.choices import build, compose_section
from sparsemend.config.compose import search_line
from sparsemend.errors import OverrideError
from sparsemend.method.masked_full.masked_full import MaskedFull
from sparsemend.pruner.sparsegpt import SparseGPT


def test_a_choice_is_the_members_yaml_with_its_own_values_over_it() -> None:
    plain = compose_section("suite.methods.x", {"method": "masked_full"}, [])
    choice = {"method": "masked_full", "scope": "all", "learning_rate": 1e-3, "compile": True}
    changed = compose_section("suite.methods.x", choice, [])
    assert (plain.scope, changed.scope) == ("linears", "all")
    assert changed.learning_rate == 1e-3
    assert changed.compile is True
    assert changed.max_steps == plain.max_steps


def test_a_choice_builds_the_configured_object() -> None:
    assert isinstance(build("x", {"method": "masked_full"}, []), MaskedFull)
    pruner = build("x", {"pruner": "sparsegpt", "block_size": 64}, [])
    assert isinstance(pruner, SparseGPT)
    assert pruner.block_size == 64


def test_an_unknown_member_or_key_names_the_label_and_the_nearest() -> None:
    with pytest.raises(OverrideError, match=r"suite\.methods\.x: unknown method 'dsnt'") as caught:
        compose_section("suite.methods.x", {"method": "dsnt"}, [])
    assert "nearest: dsnot" in str(caught.value)
    with pytest.raises(OverrideError, match=r"unknown key 'method\.max_cycle'") as caught:
        compose_section("suite.methods.x", {"method": "dsnot", "max_cycle": 3}, [])
    assert "nearest: method.max_cycles" in str(caught.value)


@pytest.mark.parametrize("choice", [{}, {"rank": 3}, {"method": "dsnot", "pruner": "wanda"}])
def test_a_choice_names_one_group(choice: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must name one of: method, pruner"):
        compose_section("suite.methods.x", choice, [])


def test_a_users_member_is_found_and_its_missing_value_refused(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: builtins.dict\nstrength: ???\n")
    search = [search_line([str(tmp_path)])]
    with pytest.raises(ValueError, match=r"give \+suite\.methods\.x\.strength=VALUE"):
        compose_section("suite.methods.x", {"method": "mine"}, search)
    section = compose_section("suite.methods.x", {"method": "mine", "strength": 2}, search)
    assert section.strength == 2
