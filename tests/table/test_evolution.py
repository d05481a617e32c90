"""The picture of a run whose supports moved, and what is said where none did."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparsemend.cli.evolution import main
from sparsemend.table.evolution import (
    PICTURE,
    effects,
    mean_rounds,
    read_evolution,
    remaining,
    shares,
)

EVOLUTION: dict[str, Any] = {
    "linears": ["a", "b"],
    "kept": [10, 20],
    "deltas": [4, 6],
    "rounds": [
        {"step": 5, "moved": [4, 5], "reactivated": [1, 2], "overlap": [9, 18]},
        {"step": 25, "moved": [1, 0], "reactivated": [1, 0], "overlap": [8, 18]},
    ],
}


def run_folder(folder: Path, repair: dict[str, Any]) -> Path:
    config = {"method": {"_target_": "sparsemend.method.seft.seft.Seft"}}
    content = {"repair": repair, "config": config, "status": "finished"}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_shares_are_of_all_deltas_and_overlaps_of_each_support() -> None:
    assert shares(EVOLUTION) == {"moved": [0.9, 0.1], "grown on pruned positions": [0.3, 0.1]}
    assert remaining(EVOLUTION) == [[0.9, 0.8], [0.9, 0.9]]


def test_the_loss_says_what_the_move_and_the_pruning_changed() -> None:
    assert effects(EVOLUTION) == {}
    losses = {"loss_before": 4.0, "loss_moved": 3.5, "loss_settled": 3.75}
    measured = {**EVOLUTION, "rounds": [{**one, **losses} for one in EVOLUTION["rounds"]]}
    assert effects(measured) == {"the move": [-0.5, -0.5], "the pruning": [0.25, 0.25]}


def test_the_losses_of_rounds_are_averaged_over_runs() -> None:
    def repair(shift: float) -> dict[str, Any]:
        losses = {"loss_before": 4.0, "loss_moved": 3.5, "loss_settled": 3.75}
        return {"evolution": {"rounds": [{"step": 5, **{k: v + shift for k, v in losses.items()}}]}}

    assert mean_rounds([repair(0.0), repair(1.0)]) == [(5, [4.5, 4.0, 4.25])]
    assert mean_rounds([repair(0.0), {"evolution": EVOLUTION}]) == []  # of rounds without a loss
    assert mean_rounds([{}]) == []


@pytest.mark.parametrize("left_out", [None, "overlap"])
def test_the_command_writes_a_png(
    left_out: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a method that says nothing of overlaps."""
    rounds = [{k: v for k, v in one.items() if k != left_out} for one in EVOLUTION["rounds"]]
    if left_out is None:
        rounds = [{**one, "loss_before": 4, "loss_moved": 3, "loss_settled": 3} for one in rounds]
    run_folder(tmp_path, {"evolution": {**EVOLUTION, "rounds": rounds}})
    monkeypatch.setattr("sys.argv", ["sparsemend-evolution", str(tmp_path)])
    main()
    assert (tmp_path / PICTURE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_without_moves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"no support moved .*method Seft, status finished"):
        read_evolution(run_folder(tmp_path, {}))
    monkeypatch.setattr("sys.argv", ["sparsemend-evolution", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()
    assert "has no result.json" in capsys.readouterr().err
