"""The proof of a family finds what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from families.listed import FAMILIES, REFUSED
from families.proof import Proof, Wrong, against_rule, check_zeros, same_logits
from families.table import PAGE, page
from safetensors.torch import load_file, save_file
from support.families import random_model
from support.process_state import process_state
from torch import Tensor

from sparsemend import api

WEIGHT = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
INPUTS = [torch.tensor([[4.0, 1.0, 1.0, 0.25]])]  # scores 4, 2, 3, 1


def keep(*kept: int) -> Tensor:
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, list(kept)] = True
    return mask


def test_a_weight_kept_against_its_score_is_counted() -> None:
    assert against_rule(keep(0, 2), WEIGHT, INPUTS) == (0, 0)
    assert against_rule(keep(1, 2), WEIGHT, INPUTS) == (2, 0)
    assert against_rule(keep(0, 1), WEIGHT, INPUTS) == (2, 0)


def test_scores_that_are_equal_may_change_places() -> None:
    weight = torch.tensor([[1.0, -3.0, 3.0 + 1e-6, 4.0]])
    inputs = [torch.ones(1, 4)]
    assert against_rule(keep(2, 3), weight, inputs) == (0, 0)
    assert against_rule(keep(1, 3), weight, inputs) == (0, 2)


def test_a_linear_without_inputs_has_no_rule() -> None:
    assert against_rule(keep(0, 2), WEIGHT, []) is None


def test_a_zero_that_its_mask_does_not_say_is_named(tmp_path: Path) -> None:
    model = random_model("llama")
    with process_state():
        api.prune(model, None, "pruner=magnitude", sparsity=0.5)
        exported = api.export(model, tmp_path / "exported")
    check_zeros(exported)
    path = exported / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.where(tensors[name] == tensors[name].max(), 0, tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(Wrong, match=r"model\.layers\.1\.mlp\.up_proj: zeros"):
        check_zeros(exported)


def test_other_logits_are_said(tokens: Tensor) -> None:
    one, other = random_model("llama"), random_model("llama", seed=1)
    assert same_logits(one, one, tokens, "the model itself") == 0
    with pytest.raises(Wrong, match=r"another model has logits that are .* off"):
        same_logits(one, other, tokens, "another model")


def test_the_page_lists_what_works_first() -> None:
    proofs = [
        Proof("b", "B", state="refused", reason="encoder|decoder"),
        Proof("c", "C", 0.9912, 0.0, 1.0, 0, 3e-7, "works"),
        Proof("a", "A", 0.97, 0.0, 0.99999, 1, 0.0, "works"),
    ]
    lines = [line for line in page(proofs).splitlines() if line.startswith("| `")]
    assert lines == [
        "| `a` | `A` | 97.0% | 0 | 99.999% | 0 | works |",
        "| `c` | `C` | 99.1% | 0 | 100% | 3e-07 | works |",
        "| `b` | `B` |  |  |  |  | refused: encoder\\|decoder |",
    ]
    assert "Of 3 families: 2 works, 1 refused" in page(proofs)


def test_the_first_page_claims_what_the_table_says() -> None:
    table, first = PAGE.read_text(), (PAGE.parents[2] / "README.md").read_text()
    states = re.findall(r"^\| `(\S+)` .* (works|partly|refused|fails)[^|]*\|$", table, re.M)
    assert {family for family, _ in states} == set(FAMILIES)
    assert {f for f, state in states if state != "works"} == set(REFUSED)
    works = len(FAMILIES) - len(REFUSED)
    assert f"[{works} of {len(FAMILIES)} families](multirun/reference/families.md)" in first
