"""The pages of a claim from a tiny stored sweep."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support import result_folders
from support.claim_sweeps import (
    DSNOT,
    KEY,
    STATEMENT,
    cell,
    collapse,
    diverge,
    failure,
    override,
    rates,
    sweep,
)

from sparsemend.cli.tables import main
from sparsemend.result.folder import read_result
from sparsemend.sweep.claims import plot
from sparsemend.sweep.claims.index import index, table
from sparsemend.sweep.claims.keep import keep
from sparsemend.sweep.claims.page import page, write
from sparsemend.sweep.claims.read import read_claims
from sparsemend.sweep.claims.verdict_line import verdict_lines
from sparsemend.sweep.read import overrides_of

Captured = pytest.CaptureFixture[str]
OTHER = {"name": "python_docs", "calibration_samples": 2}


def test_the_value_that_validation_chose_is_compared(searched: Path) -> None:
    (claim,) = read_claims([searched])
    (judged,) = claim.judged
    (comparison,) = judged.comparisons
    assert comparison.seeds == (0, 1)
    assert comparison.effect.mean == pytest.approx(math.sqrt(24 / 30 * 24 / 31))
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
    assert "holds here; x 0.787 (" in said
    text = (tmp_path / "pages" / "made_up.md").read_text()
    for part in (
        "**holds here**; x 0.787",
        "* 2 of 2 cells measured.",
        "| wanda 0.6 | 24.000 | 30.496 | 0.787 |",
        "\nsparsemend -m experiment=claims/made_up\n",  # both seeds are its own
        "published: perplexity change (atp minus uniform) -52.10 of llama2_7b",
        "| atp | wanda 0.6, python_docs | 2 | 0.01 (edge) | - | 0.02 | 1.0909 |",
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
    assert f"{row} | **holds here** | 0.787 (" in index
    # pruned and repaired have one perplexity: no difference
    row = "| [zeros](zeros.md) | moving zeros helps | tiny, python_docs"
    assert (
        f"{row} | **not told apart** | 1.000 (1.000 - 1.000) | 0, 1 | 0 / 0 / 1 | 2 of 2 |" in index
    )


def test_a_pruned_model_stands_beside_its_own_repair_and_the_papers_cells(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", DSNOT)
    cell(folder / "0", method="dsnot", pruned=30.0, repaired=33.0)
    (claim,) = read_claims([folder])
    (comparison,) = claim.judged[0].comparisons
    assert comparison.effect.mean == pytest.approx(1.1)
    assert comparison.verdict == "does not hold here"
    assert comparison.published is not None
    assert comparison.published.text == "x 0.956 (dsnot/table1, llama_7b: 10.22 / 10.69)"
    assert "does not hold here so far (1 of 2 cells measured); x 1.100" in verdict_lines(claim)[0]
    assert "made_up seed=0\n" in page(claim)  # one seed of two


def index_of(sweep: Path, folder: Path) -> str:
    """The index of the one claim of a sweep."""
    (claim,) = read_claims([sweep])
    (folder / f"{claim.name}.csv").write_text(table(claim))
    return index(folder)


@pytest.mark.parametrize("end", [collapse, diverge])
def test_a_collapse_of_ours_is_counted_and_is_no_success(moved: Path, end: Any) -> None:
    """The seed that is left would hold by itself; without any the claim does not hold."""
    end(moved / "1")
    if end is diverge:  # the pruned model is that of another cell
        cell(moved / "2", method="none", seed=1, pruned=30.0, repaired=30.0)
        override(moved / "2", "method=none")
    (claim,) = read_claims([moved])
    (one,) = claim.judged
    assert one.comparisons[0].seeds == (0,)
    assert (one.comparisons[0].verdict, one.verdict) == ("not told apart", "not told apart")
    assert "collapsed: ours in 1 of 2 pairs" in verdict_lines(claim)[0]
    assert "| 0 | ours 1 of 2 | not told apart |" in page(claim)
    collapse(moved / "0")
    (claim,) = read_claims([moved])
    assert claim.judged[0].verdict == "does not hold here"
    assert "| - | - | - | ours 2 of 2 | does not hold here |" in page(claim)


def test_a_row_whose_every_trial_diverged_does_not_hold(searched: Path) -> None:
    for number in (1, 2):
        diverge(searched / str(number))
        override(searched / str(number), f"{KEY}=0.0{number}")
    shutil.rmtree(searched / "4")
    (claim,) = read_claims([searched])
    (one,) = claim.judged
    assert (one.verdict, one.effect, one.collapses) == ("does not hold here", None, (1, 0, 1))
    assert "* training diverged in 2 cells (1, 2)." in page(claim)


def test_values_of_which_none_was_validated_are_not_compared(searched: Path) -> None:
    shutil.rmtree(searched / "1")
    shutil.rmtree(searched / "2")
    rates(searched, 5, 1, 0.02, pruned=10.0)  # seed 1 alone, at two values
    assert read_claims([searched])[0].judged == ()


def test_a_perplexity_of_a_hundred_thousand_is_a_collapse(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", DSNOT)
    cell(folder / "0", method="dsnot", seed=0, pruned=9e4, repaired=2e5)
    cell(folder / "1", method="dsnot", seed=1, pruned=9e4, repaired=10.0)  # carries the mean
    (one,) = read_claims([folder])[0].judged
    assert one.effect is not None
    assert one.effect.mean < 1
    assert one.verdict != "holds here"
    assert one.collapses == (1, 0, 2)


def test_a_seed_on_which_both_sides_collapsed_says_nothing(moved: Path, tmp_path: Path) -> None:
    for state in ("pruned", "repaired"):
        collapse(moved / "1", state)
    (one,) = read_claims([moved])[0].judged
    assert (one.verdict, one.seeds, one.collapses) == ("holds here", (0,), (1, 1, 2))
    for state in ("pruned", "repaired"):
        collapse(moved / "0", state)
    write(read_claims([moved]), tmp_path / "pages")
    assert (
        "| **not told apart** | - | - | 0 / 0 / 1, 4 collapsed |"
        in (tmp_path / "pages" / "README.md").read_text()
    )


def test_a_verdict_is_so_far_until_every_planned_cell_is_there(moved: Path, tmp_path: Path) -> None:
    (path,) = moved.glob("multirun.yaml")
    rules = OmegaConf.load(path)
    rules.hydra.sweeper.params = {"seed": "0,1,2", "sparsity": "0.6,0.7", "pruner": "wanda"}
    OmegaConf.save(rules, path)
    (claim,) = read_claims([moved])
    assert "holds here so far (2 of 6 cells measured); x 0.667" in verdict_lines(claim)[0]
    assert "**holds here so far** (2 of 6" in page(claim)
    assert "| **holds here so far** |" in index_of(moved, tmp_path)
    cell(moved / "2", method="dsnot", seed=2, pattern="2:4", pruned=30.0, repaired=20.0)
    lines = ["experiment=claims/made_up", "seed=2", "sparsity=0.5", r"pattern=2\:4"]
    OmegaConf.save(OmegaConf.create(lines), moved / "2" / ".hydra" / "overrides.yaml")
    assert "3 of 9 cells measured: 2 of 6 of `experiment=claims/made_up`, 1 of 3 of" in page(
        read_claims([moved])[0]
    )


@pytest.mark.parametrize(
    ("part", "progress"),
    [
        (r"pattern=2\:4", "1 of 4 cells measured"),  # of both parts: they have one text
        ("data=text", "1 of 2 cells measured"),  # of another text, where nothing else is planned
    ],
)
def test_the_part_without_overrides_is_planned_where_it_would_be_measured(
    tmp_path: Path, part: str, progress: str
) -> None:
    folder = sweep(tmp_path / "sweep", DSNOT)
    cell(folder / "0", method="dsnot", seed=0, pruned=30.0, repaired=20.0)
    lines = ["experiment=claims/made_up", "seed=0", "sparsity=0.6", part]
    OmegaConf.save(OmegaConf.create(lines), folder / "0" / ".hydra" / "overrides.yaml")
    (line,) = verdict_lines(read_claims([folder])[0])
    assert f"holds here so far ({progress})" in line


def test_one_setting_does_not_carry_a_claim_that_another_contradicts(tmp_path: Path) -> None:
    """x 0.2 and x 1.5: their mean holds, one of the two does not."""
    folder = sweep(tmp_path / "sweep", DSNOT)
    for number, (pruner, after) in enumerate([("magnitude", 20.0), ("sparsegpt", 150.0)]):
        cell(folder / str(number), method="dsnot", pruner=pruner, pruned=100.0, repaired=after)
    (claim,) = read_claims([folder])
    (one,) = claim.judged
    assert one.effect is not None
    assert one.effect.high < 1
    assert one.verdict == "mixed"
    assert "2 settings: holds here in 1, does not hold here in 1" in verdict_lines(claim)[0]


def test_a_cell_that_was_measured_again_counts_once_and_both_numbers_are_shown(
    moved: Path,
) -> None:
    cell(moved / "10", method="dsnot", seed=1, pruned=30.0, repaired=25.0)
    (claim,) = read_claims([moved])
    assert claim.judged[0].effect is not None
    assert claim.judged[0].effect.mean == pytest.approx(math.sqrt(20 / 30 * 25 / 30))
    said = "seed 1: ours measured again, 20.000 in cell 1 (None threads) and 25.000 in cell 10"
    assert said in page(claim)
    assert "the rival measured again" not in page(claim)  # the same number


def test_cells_that_ended_otherwise_are_listed(moved: Path) -> None:
    path = moved / "1" / "result.json"
    content = json.loads(path.read_text())
    error = failure("OSError", "the disk is full")
    path.write_text(json.dumps({**content, "status": "failed", "error": error}))
    text = page(read_claims([moved])[0])
    assert "* 1 of 2 cells measured." in text
    assert "* cell 1 failed: the disk is full." in text
    cell(moved / "2", method="dsnot", seed=1)  # the same cell, measured in the end
    assert "cell 1 failed" not in page(read_claims([moved])[0])


@pytest.mark.parametrize(
    ("free", "says"),
    [
        (30.0, "no gain that is told from none"),
        (24.0, "of which ours keeps 0.49; at least 0.5: does not hold here, x 1.00"),
        (27.0, "of which ours keeps 1.04; at least 0.5: holds here, x 0.9"),
    ],
)
def test_the_share_of_another_sides_gain_that_is_kept_is_judged(
    tmp_path: Path, free: float, says: str
) -> None:
    evolve = 26.9
    share = {"ours": {"variant": "evolve"}, "rival": {"variant": "fixed"}, "at_most": 1.01}
    share |= {"share_of": {"variant": "free"}, "share": 0.5}
    folder = sweep(tmp_path / "sweep", {**STATEMENT, **share})
    for number, (name, value) in enumerate([("fixed", 30.0), ("evolve", evolve), ("free", free)]):
        for seed in (0, 1):
            cell(
                folder / str(2 * number + seed),
                method="seft",
                seed=seed,
                variant=name,
                repaired=value,
            )
    (claim,) = read_claims([folder])
    assert says in verdict_lines(claim)[0]
    assert f"wanda 0.6: free has {free:.3f}; free over the rival" in page(claim)


def test_a_cell_that_is_there_twice_is_refused(searched: Path) -> None:
    rates(searched, 5, 1, 0.01, pruned=20.0, data={"name": "python_docs", "calibration_samples": 2})
    with pytest.raises(ValueError, match="is there twice with seed 1, and differs in data"):
        read_claims([searched])


def test_sweeps_that_state_other_rules_are_refused(searched: Path, tmp_path: Path) -> None:
    other = sweep(tmp_path / "other", {**STATEMENT, "at_most": 1.1}, key=KEY)
    rates(other, 0, 2, None)
    with pytest.raises(ValueError, match="state other rules"):
        read_claims([searched, other])


def test_a_claim_that_cannot_be_judged_leaves_the_others_their_pages(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(plot, "draw", lambda judged, path: path.touch())
    other = sweep(tmp_path / "other", DSNOT)
    cell(other / "0", claim="a_claim_of_other_data", method="dsnot", pruned=20.0)
    cell(other / "1", claim="a_claim_of_other_data", seed=1, method="dsnot", data=OTHER)
    pages = tmp_path / "pages"
    with pytest.raises(SystemExit, match="1"):
        main(["claims", str(searched), str(other), "--out", str(pages)])
    assert "differ in data.calibration_samples" in capsys.readouterr().err
    assert sorted(path.name for path in pages.glob("*.md")) == ["README.md", "made_up.md"]


def test_kept_cells_are_small_and_give_the_same_page(searched: Path, tmp_path: Path) -> None:
    before = {
        path.parent.name: json.loads(path.read_text()) for path in searched.glob("*/result.json")
    }
    for number, content in before.items():
        content["sparsity"]["per_linear"] = {"0.q_proj": {"asked": 0.6, "achieved": 0.6}}
        reused = {"hit": False, "key": "0" * 64, "seconds": 1.0, "made_by": str(searched)}
        content["cache"] = {"metrics": {"dense": {"perplexity": reused}}}
        (searched / number / "result.json").write_text(json.dumps(content))
        (searched / number / "masks.safetensors").write_bytes(bytes(1000))
    kept = tmp_path / "kept"
    main(["claims", str(searched), "--out", str(tmp_path / "pages"), "--keep", str(kept)])
    (claim,) = read_claims([kept])
    assert page(claim) == (tmp_path / "pages" / "made_up.md").read_text()
    assert table(claim) == (tmp_path / "pages" / "made_up.csv").read_text()
    for path in kept.rglob("*"):
        assert path.is_dir() or str(tmp_path) not in path.read_bytes().decode(errors="replace")
    sweep_folder = kept / "made_up" / "sweep"
    assert sorted(path.name for path in (sweep_folder / "1").iterdir()) == [
        ".hydra",
        "result.json",
        "window_losses",
    ]
    left = read_result(sweep_folder / "1")
    assert left is not None
    assert left.finished
    assert left.config_hash == before["1"]["config_hash"]
    assert overrides_of(sweep_folder / "1") == overrides_of(searched / "1")


def test_two_sweeps_of_one_name_are_not_kept_in_one_folder(searched: Path, tmp_path: Path) -> None:
    other = sweep(tmp_path / "other" / "sweep", STATEMENT, key=KEY)
    rates(other, 0, 2, None)
    with pytest.raises(ValueError, match="would both be kept in"):
        keep(read_claims([searched, other]), tmp_path / "kept")


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
        ({"ours": "atp"}, "ours=atp of a statement is no conditions"),
        ({"ours": None}, "has ours and rival"),
        ({"rival": {"rows": "lors"}}, "rival of a statement asks for rows, which is none of row"),
        ({"beside": "dsnot/table1"}, "beside=dsnot/table1 of a statement is no list"),
        ({"says": "a | b"}, "is no line of text"),
    ],
)
def test_a_statement_that_is_not_whole_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = sweep(tmp_path / "sweep", {**STATEMENT, **changes})
    rates(folder, 0, 0, None)
    with pytest.raises(ValueError, match=message):
        read_claims([folder])


def test_a_page_says_what_a_finer_grid_could_gain(searched: Path) -> None:
    """log validation is 3 + (log value - log 0.012)^2 / 10, of three values least at 0.01."""
    for number, value in [(1, 0.01), (2, 0.02), (5, 0.005)]:
        shutil.rmtree(searched / str(number), ignore_errors=True)
        validation = math.exp(3 + math.log(value / 0.012) ** 2 / 10)
        rates(searched, number, 0, value, pruned=24.0, validation=validation)
    gain = math.exp(-(math.log(0.01 / 0.012) ** 2) / 10)
    assert f"| 3 | 0.01 | 0.012 (x {gain:.3f}) |" in page(read_claims([searched])[0])


def test_a_page_says_where_sides_are_not_equally_sparse(searched: Path) -> None:
    path = searched / "3" / "result.json"
    content = json.loads(path.read_text())
    content["sparsity"]["achieved"] = 0.59
    path.write_text(json.dumps(content))
    (claim,) = read_claims([searched])
    said = "wanda 0.6: not equally sparse: of target 0.6, the rival (seed 1) achieves 0.5900"
    assert said in page(claim)


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
