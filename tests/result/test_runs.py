import json
from pathlib import Path

import jsonschema
import pytest
from support import result_folders as made

from sparsemend.config.locations import PACKAGE
from sparsemend.result.protocol import measured_text
from sparsemend.result.runs import DENSE, Row, RunRecord, find_runs


def run(**changes: object) -> RunRecord:
    return made.record(**changes)  # type: ignore[arg-type]


def test_the_made_up_results_fit_the_schema() -> None:
    schema = json.loads((PACKAGE / "result" / "schema.json").read_text())
    jsonschema.validate(made.result(), schema)


@pytest.mark.parametrize("changes", [{"cost": 3}, {"metrics": []}, {"error": {"type": "x"}}])
def test_a_result_that_was_changed_by_hand_is_named_in_one_line(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    made.write(tmp_path / "0", made.result() | changes)
    with pytest.raises(ValueError, match=r"0/result\.json cannot be read \(") as caught:
        find_runs([tmp_path])
    assert "\n" not in str(caught.value)


def test_a_run_measures_a_dense_a_pruned_and_a_repaired_row() -> None:
    pruned = Row(0.6, "unstructured", "wanda", "uniform", "none", "-")
    repaired = Row(0.6, "unstructured", "wanda", "uniform", "masked_lora", "-")
    expected = [(DENSE, "dense"), (pruned, "pruned"), (repaired, "repaired")]
    assert list(run().states()) == expected


def test_without_repair_the_pruned_state_is_the_last() -> None:
    assert [state for _, state in run(method="none").states()] == ["dense", "pruned"]


def test_a_progression_without_slope_is_uniform() -> None:
    flat = run(schedule="atp", schedule_knobs={"common_difference": 0})
    assert flat.row.schedule == "uniform"
    assert run(schedule="atp", schedule_knobs={"common_difference": 0.1}).row.schedule == "atp"


def test_settings_leave_out_the_seed_and_what_the_row_says() -> None:
    settings = run(knobs={"rank": 16}).settings("repaired")
    assert settings["method.rank"] == 16
    assert not {"seed", "name", "sparsity"} & set(settings)
    assert "method.rank" not in run(knobs={"rank": 16}).settings("pruned")


def test_a_chosen_attention_and_the_same_by_default_are_one_setting() -> None:
    def settings(asked: str | None, computed: str | None) -> dict[str, object]:
        content = made.result(protocol={"attention": computed} if computed else None)
        content["config"]["model"]["attention"] = asked
        return made.record_of(content).settings("dense")

    assert settings(None, "sdpa") == settings("sdpa", "sdpa") == settings("sdpa", None)
    assert settings(None, "eager") != settings("sdpa", "sdpa")


def test_the_text_of_c4_is_what_it_is_tested_on() -> None:
    assert measured_text({"name": "c4", "test_on": "wikitext2"}) == "wikitext2"
    assert measured_text({"name": "alpaca", "text": {"name": "c4", "test_on": "c4"}}) == "c4"
    assert measured_text({"name": "python_docs"}) == "python_docs"


def test_only_finished_runs_are_found(tmp_path: Path) -> None:
    made.write(tmp_path / "a" / "0", made.result())
    made.write(tmp_path / "b" / "0", made.result() | {"status": "failed"})
    assert [r.folder.parent.name for r in find_runs([tmp_path])] == ["a"]


def test_a_run_under_two_of_the_folders_is_found_once(tmp_path: Path) -> None:
    made.write(tmp_path / "a" / "0", made.result())
    made.write(tmp_path / "b" / "0", made.result())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    folders = [tmp_path / "link", tmp_path / "b", tmp_path / "a"]
    assert [r.folder.parent.name for r in find_runs(folders)] == ["a", "b"]


def test_an_empty_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run under .*; run sparsemend first"):
        find_runs([tmp_path])


@pytest.mark.parametrize(("dirty", "seen"), [(True, True), (False, False), (None, True)])
def test_sources_of_unknown_state_count_as_dirty(dirty: bool | None, seen: bool) -> None:
    content = made.result()
    content["provenance"]["dirty"] = dirty
    assert made.record_of(content).dirty is seen
