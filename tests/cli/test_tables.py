"""The command `sparsemend-tables`."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import result_folders as made

from sparsemend.cli import main as cli
from sparsemend.cli import tables
from sparsemend.table.listing import command_of, counts, entries, line

CELL = "dsnot/table1/llama2_7b/0.6/wanda/uniform/dsnot/wikitext2/perplexity"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, what was said)."""
    with pytest.raises(SystemExit) as stop:
        tables.main(arguments)
    return int(stop.value.code or 0), capsys.readouterr().err


def test_a_misspelt_command_is_refused_with_the_nearest(capsys) -> None:
    code, said = refused(capsys, "colect", "x")
    assert code == 2
    assert said.startswith("error: unknown command 'colect'\nnearest: collect\n")


def test_a_misspelt_option_is_refused_with_the_nearest(capsys) -> None:
    code, said = refused(capsys, "list", "--sumary")
    assert code == 2
    assert "nearest: --summary" in said


def test_an_unknown_cell_is_refused_with_the_nearest(capsys) -> None:
    code, said = refused(capsys, "run", "--cell", CELL.replace("dsnot/w", "dsnto/w"))
    assert code == 2
    assert f"nearest: {CELL}" in said


def test_an_unknown_paper_is_refused_with_the_nearest(capsys) -> None:
    code, said = refused(capsys, "list", "--paper", "dsnt")
    assert (code, "nearest: dsnot" in said) == (2, True)


def test_a_cell_without_experiment_says_why(capsys) -> None:
    cell = "seft/review/-/-/-/-/seft/c4/best_update_interval_steps"
    code, said = refused(capsys, "run", "--cell", cell)
    assert code == 1
    assert "best_update_interval_steps is not a metric of a run" in said


def test_a_cell_becomes_the_ordinary_command(capsys) -> None:
    tables.main(["run", "--dry", "--cell", CELL, "seed=3"])
    assert capsys.readouterr().out == (
        "sparsemend experiment=dsnot/table1 model=llama2_7b pruner=wanda seed=3\n"
    )


def test_a_scaled_cell_leaves_the_model_to_the_scale() -> None:
    assert command_of(CELL, "tiny", []) == [
        "sparsemend",
        "experiment=dsnot/table1",
        "scale=tiny",
        "pruner=wanda",
    ]


def test_a_cell_is_run_by_the_ordinary_command(monkeypatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    tables.main(["run", "--cell", CELL, "--scale", "tiny", "seed=3"])
    assert seen == [[*command_of(CELL, "tiny", []), "seed=3"]]


def test_listing_counts_published_configured_and_runnable_cells(capsys) -> None:
    found = entries("wanda")
    assert len(found) == 30
    assert all(entry.job is not None for entry in found)
    columns = [list(column.cells) for column in counts(found).columns]
    assert [column[0] for column in columns][:4] == ["wanda", "30", "9", "30"]
    tables.main(["list", "--paper", "wanda"])
    printed = capsys.readouterr().out
    assert printed.count("wanda/readme/") == printed.count("  wanda/readme  ") == 30
    assert "GiB" in printed


def test_a_line_tells_value_mark_and_needs() -> None:
    entry = next(e for e in entries("dsnot") if e.cell.identity == CELL)
    told = line(entry)
    assert told.startswith(f"{CELL}  10.59 [image]  dsnot/table1  14.9 GiB, 4 min on an A100, ")


def test_a_line_tells_what_the_source_leaves_open() -> None:
    identity = "ebft/abstract/llama_7b/0.7/-/-/reconstruct/wikitext2/perplexity"
    entry = next(e for e in entries("ebft") if e.cell.identity == identity)
    expected = "ebft/abstract (pruner not stated: wanda here, schedule not stated: uniform here)  "
    assert expected in line(entry)


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ("ebft/abstract/llama_7b/structured/-/-/lora/wikitext2/perplexity",
         "no structured pruning"),
        ("dsa/zero_shot/llama_7b/0.5/wanda/uniform/none/zero_shot_average/accuracy_percent",
         "the tasks of zero_shot_average are not stated"),
        ("sqft/table2/mistral_7b_v0_3/-/-/-/none/gsm8k/accuracy_percent",
         "pruner and sparsity not stated"),
        ("atp/table1/llama3_8b/0.7/wanda/atp/none~atp_minus_dsa/zero_shot_average_7/"
         "accuracy_points_change", "no experiment"),
    ],
)  # fmt: skip
def test_a_line_tells_why_there_is_no_experiment(identity: str, why: str) -> None:
    entry = next(e for e in entries(identity.partition("/")[0]) if e.cell.identity == identity)
    assert line(entry).endswith(f"  no config: {why}")


def test_collect_without_a_finished_run_is_refused(capsys, tmp_path: Path) -> None:
    made.write(tmp_path / "a", made.result() | {"status": "failed"})
    code, said = refused(capsys, "collect", str(tmp_path))
    assert code == 1
    assert f"no finished run under {tmp_path} (1 unfinished)" in said


def test_a_folder_that_does_not_exist_is_refused(capsys, tmp_path: Path) -> None:
    code, said = refused(capsys, "report", str(tmp_path / "nowhere"))
    assert (code, "nowhere is no folder" in said) == (1, True)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    made.write(tmp_path / "a", made.result())
    code = (
        "import sys\nfrom sparsemend.cli import tables\n"
        f"tables.main(['list', '--summary'])\ntables.main(['collect', {str(tmp_path)!r}])\n"
        f"tables.main(['report', {str(tmp_path)!r}])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print('imported', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.endswith("imported []\n")
