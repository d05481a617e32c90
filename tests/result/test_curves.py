from pathlib import Path

from support import result_folders as made

from sparsemend.result.curves import read_curves


def test_of_a_step_that_two_attempts_recorded_the_later_counts(tmp_path: Path) -> None:
    made.add_curves(tmp_path, "training-10", "2,9.0,\n")
    made.add_curves(tmp_path, "training-2", "2,8.0,\n3,7.0,\n")
    made.add_curves(tmp_path, "training", "1,5.0,4.5\n2,6.0,\n")
    assert read_curves(tmp_path) == {
        "train/loss": [(1, 5.0), (2, 9.0), (3, 7.0)],
        "validation/loss": [(1, 4.5)],
    }


def test_a_run_without_a_fit_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
