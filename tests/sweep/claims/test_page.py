"""The pages of a claim from a tiny stored sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support import result_folders

from sparsemend.cli.tables import main
from sparsemend.result.window_losses import write_losses
from sparsemend.sweep.claims import plot
from sparsemend.sweep.claims.page import page, verdict_lines, write
from sparsemend.sweep.claims.read import read_claims

METRIC, VALIDATION = "perplexity/test", "perplexity/validation"
STATEMENT = {
    "says": "rates that rise are better than equal ones",
    "ours": {"schedule": "atp"},
    "rival": {"schedule": "uniform"},
    "measure": METRIC,
    "at_most": 1.0,
    "source": "a paper, abstract",
    "published": [
        "atp/headline/llama2_7b/0.7/wanda/atp/none~atp_minus_uniform/wikitext2/perplexity_change"
    ],
}
DSNOT = {
    **STATEMENT,
    "says": "moving zeros helps",
    "ours": {"method": "dsnot"},
    "rival": {"method": "none"},
    "beside": ["dsnot/table1"],
}
KEY = "sparsity_schedule.common_difference"


def sweep(root: Path, *statements: dict[str, Any], key: str | None = None) -> Path:
    """A sweep's folder with the rules that its command left there."""
    root.mkdir(parents=True, exist_ok=True)
    callbacks = {"claim": {"statements": list(statements)}}
    sweeper = {"params": {"seed": "0,1"}, "choose": {"key": key, "seed": 0}}
    hydra = {"callbacks": callbacks, "sweeper": sweeper}
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), root / "multirun.yaml")
    return root


def cell(folder: Path, *, claim: str = "made_up", validation: float = 0.0, **given: Any) -> Path:
    """A finished cell with 8 windows, whose losses differ by window alone."""
    content = result_folders.result(**given)
    content["config"]["claim"] = claim
    content["metrics"]["repaired"][VALIDATION] = validation
    content |= {"seconds": 360.0, "repair": {"steps": 4}}
    result_folders.write(folder, content)
    (folder / ".hydra").mkdir()
    lines = ["experiment=claims/made_up", f"seed={content['config']['seed']}"]
    lines += ["sparsity=0.6", *([] if claim == "made_up" else ["data=text"])]
    OmegaConf.save(OmegaConf.create(lines), folder / ".hydra" / "overrides.yaml")
    for state in ("pruned", "repaired"):
        mean = math.log(content["metrics"][state][METRIC])
        write_losses(folder, state, {METRIC: mean + torch.linspace(-0.5, 0.5, 8)})
    return folder


def rates(folder: Path, number: int, seed: int, difference: float | None, **values: Any) -> None:
    """A cell that prunes alone, with ATP's common difference or with equal rates."""
    schedule = "uniform" if difference is None else "atp"
    knobs = None if difference is None else {"common_difference": difference}
    values = {"repaired": values.get("pruned", 30.0), **values}
    cell(
        folder / str(number),
        seed=seed,
        method="none",
        schedule=schedule,
        schedule_knobs=knobs,
        **values,
    )


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """Equal rates with two seeds; two differences on seed 0, of which validation takes the first.

    The test text would take the second, and seed 1 has the first alone.
    """
    folder = sweep(tmp_path / "sweep", STATEMENT, key=KEY)
    rates(folder, 0, 0, None, pruned=30.0)
    rates(folder, 1, 0, 0.01, pruned=24.0, validation=20.0)
    rates(folder, 2, 0, 0.02, pruned=22.0, validation=21.0)
    rates(folder, 3, 1, None, pruned=32.0)
    rates(folder, 4, 1, 0.01, pruned=24.0, validation=20.0)
    return folder


def test_the_value_that_validation_chose_is_compared(searched: Path) -> None:
    (claim,) = read_claims([searched])
    (judged,) = claim.judged
    (comparison,) = judged.comparisons
    assert comparison.seeds == (0, 1)
    assert comparison.effect.mean == pytest.approx(math.sqrt(24 / 30 * 24 / 32))
    assert (comparison.verdict, judged.verdict) == ("holds here", "holds here")
    (chosen,) = claim.chosen
    assert chosen.at_edge
    assert (chosen.side, chosen.value, chosen.by_test) == ("atp", 0.01, 0.02)
    assert chosen.gap is not None
    assert chosen.gap.mean == pytest.approx(24 / 22)
    assert chosen.seconds == 720.0


def test_the_page_says_what_was_measured_and_where_it_comes_from(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["claims", str(searched), "--out", str(tmp_path / "pages")])
    said = capsys.readouterr().out
    assert "holds here, x 0.775 (" in said
    text = (tmp_path / "pages" / "made_up.md").read_text()
    for part in (
        "**holds here**",
        "| wanda 0.6 | 24.000 | 31.000 | 0.775 |",
        "\nsparsemend -m experiment=claims/made_up sparsity=0.6\n",  # both seeds are its own
        "published: perplexity change (atp minus uniform) -52.10 of llama2_7b",
        "| atp | wanda 0.6, python_docs | 2 | 0.01 (edge) | 0.02 | 1.0909 |",
        "5 cells, 0.5 hours; commit cccccccccc",
        "![every comparison with its interval](made_up.png)",
    ):
        assert part in text, part
    assert (tmp_path / "pages" / "made_up.png").stat().st_size > 1000


def test_the_index_lists_claims_that_were_written_at_different_times(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "draw", lambda judged, path: path.touch())
    other = sweep(tmp_path / "other", DSNOT)
    for seed in (0, 1):
        cell(other / str(seed), claim="zeros", seed=seed, method="dsnot", pruned=20.0)
    pages = tmp_path / "pages"
    write(read_claims([searched]), pages)
    write(read_claims([other]), pages)
    index = (pages / "README.md").read_text()
    row = "| [made_up](made_up.md) | rates that rise are better than equal ones | tiny, python_docs"
    assert f"{row} | **holds here** |" in index
    # pruned and repaired have one perplexity: no difference
    row = "| [zeros](zeros.md) | moving zeros helps | tiny, python_docs"
    assert f"{row} | **not told apart** | 1.000 (1.000 - 1.000) | 0 / 0 / 1 |" in index


def test_a_pruned_model_stands_beside_its_own_repair_and_the_papers_cells(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", DSNOT)
    cell(folder / "0", method="dsnot", pruned=30.0, repaired=33.0)
    (claim,) = read_claims([folder])
    (comparison,) = claim.judged[0].comparisons
    assert comparison.effect.mean == pytest.approx(1.1)
    assert comparison.verdict == "does not hold here"
    assert comparison.published is not None
    assert comparison.published.text == "x 0.956 (dsnot/table1, llama_7b: 10.22 / 10.69)"
    assert "does not hold here, x 1.100" in verdict_lines(claim)[0]
    assert "made_up sparsity=0.6 seed=0\n" in page(claim)  # one seed of two


def test_a_cell_that_is_there_twice_is_refused(searched: Path) -> None:
    rates(searched, 5, 1, 0.01, pruned=20.0, data={"name": "python_docs", "calibration_samples": 2})
    with pytest.raises(ValueError, match="is there twice with seed 1, and differs in data"):
        read_claims([searched])


def test_sweeps_that_state_other_rules_are_refused(searched: Path, tmp_path: Path) -> None:
    other = sweep(tmp_path / "other", {**STATEMENT, "at_most": 1.1}, key=KEY)
    rates(other, 0, 2, None)
    with pytest.raises(ValueError, match="state other rules"):
        read_claims([searched, other])


def test_folders_without_a_claim_are_refused(tmp_path: Path) -> None:
    result_folders.write(tmp_path / "0", result_folders.result())
    with pytest.raises(ValueError, match="no cell of a claim"):
        read_claims([tmp_path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": "speed"}, "measure=speed"),
        ({"at_most": 0.0}, "at_most=0.0"),
        ({"because": "x"}, "does not know because"),
    ],
)
def test_a_statement_that_is_not_whole_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = sweep(tmp_path / "sweep", {**STATEMENT, **changes})
    rates(folder, 0, 0, None)
    with pytest.raises(ValueError, match=message):
        read_claims([folder])


def test_a_page_says_where_sides_are_not_equally_sparse(searched: Path) -> None:
    path = searched / "3" / "result.json"
    content = json.loads(path.read_text())
    content["sparsity"]["achieved"] = 0.59
    path.write_text(json.dumps(content))
    (claim,) = read_claims([searched])
    said = "wanda 0.6: not equally sparse: of target 0.6, the rival (seed 1) achieves 0.5900"
    assert said in page(claim)


OTHER = {"name": "python_docs", "calibration_samples": 2}


@pytest.mark.parametrize(
    ("number", "seed", "difference"),
    [(5, 2, 0.01), (5, 0, 0.03), (5, 2, None)],  # of ours, a trial that is tried no more, a rival
)
def test_cells_of_another_configuration_are_not_mixed_with_the_rest(
    searched: Path, number: int, seed: int, difference: float | None
) -> None:
    rates(searched, number, seed, difference, pruned=20.0, validation=1.0, data=OTHER)
    with pytest.raises(ValueError, match=r"differ in data.calibration_samples \(unset and 2\)"):
        read_claims([searched])


def test_both_sides_are_measured_alike(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", STATEMENT)
    rates(folder, 0, 0, None)
    rates(folder, 1, 0, 0.01, data=OTHER)
    with pytest.raises(ValueError, match="that are compared differ in data"):
        read_claims([folder])
