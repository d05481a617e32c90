"""Every family, from a saved folder to an export that transformers reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.listed import FAMILIES, QUICK, REFUSED, USED
from families.proof import prove, prove_quickly
from support.process_state import process_state


@pytest.mark.parametrize("family", QUICK)
def test_a_family_keeps_its_logits_from_folder_to_export(family: str, tmp_path: Path) -> None:
    prove_quickly(family, tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_works_as_listed(family: str, tmp_path: Path) -> None:
    with process_state():
        proof = prove(family, tmp_path)
    state, reason = REFUSED.get(family, ("works", ""))
    assert (proof.state, reason in proof.reason) == (state, True), proof


def test_at_least_ninety_families_are_tried_of_which_few_are_refused() -> None:
    assert len(set(FAMILIES)) == len(FAMILIES) >= 90
    assert set(REFUSED) <= set(FAMILIES)
    assert len(REFUSED) <= 20
    assert not set(REFUSED) & set(USED)
