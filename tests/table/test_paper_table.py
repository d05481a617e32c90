import statistics
from pathlib import Path
from typing import Any

import pytest
from support import result_folders as made

from sparsemend.errors import OverrideError
from sparsemend.result.runs import DENSE, RunRecord
from sparsemend.table.collect import collect, select_runs
from sparsemend.table.formats import notes
from sparsemend.table.measurement import suites
from sparsemend.table.paper_table import Line, PaperTable, table, tables

METRIC = "perplexity/test"
WIKITEXT = {"name": "c4", "test_on": "wikitext2"}
PUBLISHED = {"seqlen": 2048, "dtype": "bfloat16"}


def run(folder: str = "x", **changes: Any) -> RunRecord:
    return made.record(folder, **changes)


def only(found: PaperTable, method: str) -> Line:
    (line,) = [k for k in found.lines if k.row.method == method and k.row.pruner != "none"]
    return line


def paper_run(**changes: Any) -> RunRecord:
    """A run by DSnoT's published protocol."""
    base = {"model": "llama2_7b", "method": "dsnot", "name": "dsnot/table1", "repaired": 10.6}
    return run(data=WIKITEXT, protocol=PUBLISHED, **(base | changes))


def test_ours_is_the_mean_over_seeds_with_the_sample_deviation() -> None:
    values = (20.0, 21.0, 25.0)
    found = table("default", [run(seed=i, repaired=v) for i, v in enumerate(values)], METRIC)
    ours = only(found, "masked_lora").ours
    assert (ours.mean, ours.deviation, ours.runs) == (22.0, statistics.stdev(values), 3)


def test_a_single_seed_has_no_deviation() -> None:
    assert only(table("default", [run()], METRIC), "masked_lora").ours.deviation is None


def test_the_pruned_state_counts_once_per_seed_whatever_went_on_from_it() -> None:
    runs = [run(method=method) for method in ("masked_lora", "lors", "dsnot")]
    ours = only(table("default", runs, METRIC), "none").ours
    assert (ours.values, ours.runs) == ((30.0,), 3)


def test_runs_that_differ_in_a_knob_are_rows_of_their_own() -> None:
    runs = [run(knobs={"rank": rank}, repaired=20.0 + rank) for rank in (4, 8)]
    found = [k for k in table("default", runs, METRIC).lines if k.row.method == "masked_lora"]
    assert [(k.settings, k.ours.mean) for k in found] == [
        ("method.rank=4", 24.0),
        ("method.rank=8", 28.0),
    ]


def test_the_published_value_stands_beside_ours_with_the_difference() -> None:
    line = only(table("dsnot/table1", [paper_run()], METRIC), "dsnot")
    assert line.theirs is not None
    assert (line.theirs.value, line.comparable) == ("10.59", True)
    assert line.difference == pytest.approx(0.01)
    assert "Table 1" in line.theirs.source


def test_another_window_length_is_shown_but_not_compared() -> None:
    other = run(model="llama2_7b", method="dsnot", name="dsnot/table1", data=WIKITEXT)
    line = only(table("dsnot/table1", [other], METRIC), "dsnot")
    assert line.theirs is not None
    assert (line.comparable, line.difference) == (False, None)


def test_another_model_stands_beside_a_reference_without_difference() -> None:
    found = table("dsnot/table1", [run(method="dsnot", name="dsnot/table1")], METRIC)
    line = only(found, "dsnot")
    assert line.theirs is not None
    assert (line.theirs.model, line.difference) == ("llama_7b", None)


def test_a_row_nobody_published_has_no_published_value() -> None:
    found = table("dsnot/table1", [paper_run(method="lors")], METRIC)
    assert only(found, "lors").theirs is None


def test_runs_of_no_published_table_are_compared_with_any_by_the_same_protocol() -> None:
    line = only(table("default", [paper_run(name="default")], METRIC), "dsnot")
    assert line.theirs is not None
    assert (line.theirs.table, line.comparable) == ("table1", True)


@pytest.mark.parametrize(
    "other",
    [
        {"seqlen": 128},
        {"dtype": "bfloat16"},
        {"tokens": 99},
        {"statistics": "dense"},
        {"calibration_from": "train"},
    ],
)
def test_two_protocols_in_one_table_are_refused_naming_both(other: dict[str, Any]) -> None:
    runs = [run("one"), run("two", protocol=other)]
    with pytest.raises(ValueError, match="mixes two protocols") as refused:
        table("default", runs, METRIC)
    told = str(refused.value)
    assert runs[0].protocol(METRIC).label in told
    assert runs[1].protocol(METRIC).label in told
    assert "(one)" in told
    assert "(two)" in told


def test_two_texts_in_one_table_are_refused() -> None:
    with pytest.raises(ValueError, match="python_docs/test"):
        table("default", [run(), run(data=WIKITEXT)], METRIC)


def test_models_may_differ_in_dtype_and_tokens_as_each_has_a_column() -> None:
    other = {"dtype": "float16", "tokens": 999, "seqlen": 256}
    found = table("default", [run(), run(model="opt_125m", protocol=other)], METRIC)
    assert {m: p.dtype for m, p in found.protocols.items()} == {
        "tiny": "float32",
        "opt_125m": "float16",
    }


def test_models_measured_on_other_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="--where seqlen=256"):
        table("default", [run(), run(model="opt_125m", protocol={"seqlen": 512})], METRIC)


def test_what_was_never_finite_is_refused() -> None:
    content = made.result()
    for state in content["metrics"].values():
        state[METRIC] = None
    with pytest.raises(ValueError, match="not finite in any run"):
        table("default", [made.record_of(content)], METRIC)


def test_two_experiments_are_two_tables_each_with_its_own_protocol() -> None:
    runs = [run(), paper_run()]
    assert [t.title for t in tables(runs, METRIC)] == ["default", "dsnot/table1"]


def test_a_missing_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'perplexity/tst'\nnearest: perplexity/test"):
        tables([run()], "perplexity/tst")


def test_a_published_difference_is_ours_of_the_best_setting() -> None:
    knobs = [{"common_difference": d} for d in (0, 0.01, 0.02)]
    runs = [
        run(model="llama2_7b", method="none", schedule="atp", schedule_knobs=k, pruned=p,
            name="atp/headline", sparsity=0.7, data=WIKITEXT, protocol=PUBLISHED)
        for k, p in zip(knobs, (70.0, 30.0, 25.0), strict=True)
    ]  # fmt: skip
    changes = {c.theirs.variant: c for c in table("atp/headline", runs, METRIC).changes}
    found = changes["atp minus uniform"]
    assert (found.ours, found.theirs.number, found.comparable) == (-45.0, -52.10, True)


def harness_run(
    accuracy: float,
    *,
    limit: int | None = None,
    metric: str = "zero_shot/boolq/acc",
    suite: str = "wanda",
    asked: dict[str, Any] | None = None,
    **of: Any,
) -> RunRecord:
    settings = {"model": "llama2_7b", "name": "sp_lora/log", "pattern": "2:4", "sparsity": 0.5}
    content = made.result(**{**settings, "data": WIKITEXT, **of})
    options = {"limit": limit, "max_length": 2048, "suite": suite, "tasks": None}
    options |= {"suites": suites(), "metric": "acc", "add_bos_token": False, **(asked or {})}
    content["config"]["evaluation"] = {"zero_shot": options}
    for state in content["metrics"].values():
        state[metric] = accuracy
    return made.record_of(content)


def test_an_accuracy_stands_beside_the_published_one() -> None:
    found = table("sp_lora/log", [harness_run(0.7)], "zero_shot/boolq/acc")
    line = only(found, "none")
    assert line.theirs is not None
    assert (line.theirs.value, line.comparable) == ("0.6832", True)
    assert line.difference == pytest.approx(0.0168)


def test_a_limited_task_is_another_protocol() -> None:
    few = table("sp_lora/log", [harness_run(0.7, limit=10)], "zero_shot/boolq/acc")
    assert not only(few, "none").comparable
    with pytest.raises(ValueError, match=r"all items .*\n.*10 items"):
        table("sp_lora/log", [harness_run(0.7), harness_run(0.7, limit=10)], "zero_shot/boolq/acc")


@pytest.mark.parametrize(
    "asked",
    [{"tasks": {"boolq": 3}}, {"add_bos_token": True}, {"max_length": 128}],
)
def test_another_way_of_asking_is_another_protocol(asked: dict[str, Any]) -> None:
    metric = "zero_shot/boolq/acc"
    plain, other = harness_run(0.7), harness_run(0.5, asked=asked)
    if "tasks" in asked:
        assert not only(table("sp_lora/log", [other], metric), "none").comparable
    with pytest.raises(ValueError, match="mixes two protocols"):
        table("sp_lora/log", [plain, other], metric)


def test_the_score_is_part_of_a_protocol_whose_name_does_not_tell_it() -> None:
    metric = "zero_shot/mean"
    runs = [harness_run(0.5, metric=metric, asked={"metric": m}) for m in ("acc", "acc_norm")]
    with pytest.raises(ValueError, match=r"(?s)acc, 0 shots, all items.*acc_norm, 0 shots"):
        table("sp_lora/log", runs, metric)


def test_two_checkpoints_of_one_name_are_two_rows() -> None:
    runs = [run(str(i), seed=i, repaired=v) for i, v in enumerate((10.0, 100.0))]
    for one, path in zip(runs, ("a", "b"), strict=True):
        one.config["model"]["path"] = path
    found = [line for line in table("default", runs, METRIC).lines if line.row.method != "none"]
    assert sorted(line.ours.mean for line in found) == [10.0, 100.0]
    dense = [line for line in table("default", runs, METRIC).lines if line.row == DENSE]
    assert len(dense) == 2


def test_devices_that_share_the_same_steps_are_no_setting() -> None:
    runs = [run(str(i), repaired=v) for i, v in enumerate((10.0, 20.0))]
    runs[1].config["hardware"] = {"devices": 4}
    found = [line for line in table("default", runs, METRIC).lines if line.row.method != "none"]
    assert len(found) == 1


def test_a_checkpoint_that_was_pruned_already_is_no_dense_model() -> None:
    found = table("default", [run(pruner="existing")], METRIC)
    assert DENSE not in {line.row for line in found.lines}


def test_a_mean_is_compared_where_it_is_over_the_papers_tasks() -> None:
    metric = "zero_shot/mean/acc_norm"
    for suite, comparable in (("wanda", True), ("atp", False)):
        found = table("sp_lora/log", [harness_run(0.65, metric=metric, suite=suite)], metric)
        (line,) = [k for k in found.lines if k.row == DENSE]
        assert line.theirs is not None
        assert (line.theirs.value, line.comparable) == ("0.6439", comparable)
    runs = [harness_run(0.6, metric=metric, suite=suite) for suite in ("wanda", "atp")]
    with pytest.raises(ValueError, match="mixes two protocols"):
        table("sp_lora/log", runs, metric)


def test_a_percentage_is_compared_as_a_fraction() -> None:
    run = harness_run(
        0.55,
        metric="zero_shot/gsm8k",
        suite="sqft",
        model="mistral_7b_v0_3",
        name="sqft/table2",
        pattern="unstructured",
        variant="SparsePEFT, FP16 merged",
    )
    line = only(table("sqft/table2", [run], "zero_shot/gsm8k"), "masked_lora")
    assert line.theirs is not None
    assert (line.theirs.value, line.theirs.shown) == ("50.1", "0.501")
    assert line.difference == pytest.approx(0.049)


def accuracy_grid(perplexities: tuple[float | None, ...]) -> list[RunRecord]:
    """Runs of ATP at d = 0, 0.01, 0.02 with accuracies 40, 45, 50 % and these perplexities."""
    runs = [
        harness_run(a, metric="zero_shot/mean/acc", suite="atp", method="none", schedule="atp",
                    sparsity=0.7, pattern="unstructured", name="atp/headline",
                    schedule_knobs={"common_difference": d}, pruned=p)
        for d, a, p in zip((0, 0.01, 0.02), (0.4, 0.45, 0.5), perplexities, strict=True)
    ]  # fmt: skip
    assert METRIC in runs[0].result.metrics["pruned"]
    return runs


def test_a_published_difference_of_accuracies_is_in_points_at_the_lowest_perplexity() -> None:
    made_table = table("atp/headline", accuracy_grid((70.0, 22.0, 25.0)), "zero_shot/mean/acc")
    (change,) = made_table.changes
    assert (change.theirs.variant, change.comparable) == ("atp minus uniform", True)
    assert change.ours == pytest.approx(5.0)  # not the 10 of the highest accuracy
    assert change.theirs.number == 10.50
    assert (
        "the lowest perplexity/test, selected by the text that is reported" in notes(made_table)[-1]
    )


def test_without_perplexity_no_setting_is_selected() -> None:
    made_table = table("atp/headline", accuracy_grid((None, None, None)), "zero_shot/mean/acc")
    (change,) = made_table.changes
    assert change.ours is None
    assert "ours unknown (without perplexity/test no setting is selected)" in notes(made_table)[-2]


def test_a_condition_chooses_runs() -> None:
    runs = [run("one"), run("two", protocol={"seqlen": 128})]
    assert [r.folder.name for r in select_runs(runs, ["seqlen=128"], METRIC)] == ["two"]
    with pytest.raises(ValueError, match="no run has seqlen=64; seqlen is one of 128, 256"):
        select_runs(runs, ["seqlen=64"], METRIC)
    with pytest.raises(OverrideError, match="nearest: seqlen"):
        select_runs(runs, ["seqln=64"], METRIC)


def test_a_condition_on_a_protocol_passes_over_runs_without_the_metric(tmp_path: Path) -> None:
    metric = "zero_shot/boolq/acc"
    asked = harness_run(0.7)
    for index, content in enumerate((asked.result.to_json(), made.result(model="llama2_7b"))):
        made.write(tmp_path / str(index), content)
    paths = collect([tmp_path], metric=metric, where=["items=all"], out=None)
    assert paths


def test_a_cell_whose_source_states_no_pruner_stands_beside_every_one_without_difference() -> None:
    rerun = {"method": "dsnot", "model": "llama2_7b", "name": "alps/table12"}
    for pruner, name in (("wanda", "llama2_7b"), ("sparsegpt", "tiny")):  # tiny: beside a reference
        of = {**rerun, "model": name, "pruner": pruner}
        line = only(table("alps/table12", [run(data=WIKITEXT, protocol=PUBLISHED, **of)], METRIC),
                    "dsnot")  # fmt: skip
        assert line.theirs is not None
        assert (line.theirs.pruner, line.theirs.method) == ("-", "dsnot")
        assert (line.comparable, line.difference) == (False, None)


def test_a_published_number_on_our_text_stands_beside_ours_not_one_on_another() -> None:
    of = {"model": "llama2_7b", "method": "none", "sparsity": 0.5, "name": "alps/c4"}
    for text, value in (("c4", "8.54"), ("wikitext2", "6.93"), ("ptb", "29.89")):
        data = {"name": "c4", "test_on": text}
        found = table("alps/c4", [run(data=data, protocol=PUBLISHED, **of)], METRIC)
        line = only(found, "none")
        assert line.theirs is not None
        # ALPS cuts C4 and Penn Treebank otherwise
        assert (line.theirs.value, line.comparable) == (value, text == "wikitext2")


def test_items_of_another_split_are_another_protocol() -> None:
    of = {"model": "llama2_7b", "name": "alps/table11", "method": "none"}
    for task, comparable in (("piqa", True), ("arc_easy", False)):
        metric = f"zero_shot/{task}"
        one = harness_run(0.7, metric=metric, suite="alps", pattern="unstructured", **of)
        line = only(table("alps/table11", [one], metric), "none")
        assert line.theirs is not None
        assert line.comparable == comparable, task


def test_a_perplexity_of_words_stands_beside_its_own_kind_alone() -> None:
    of = {"model": "llama2_7b", "name": "als/table1", "method": "none"}
    words = "zero_shot/wikitext/word_perplexity"
    one = harness_run(12.0, metric=words, suite="als", pattern="unstructured", **of)
    line = only(table("als/table1", [one], words), "none")
    assert line.theirs is not None
    # ALS does not tell the length of its windows
    assert (line.theirs.value, line.comparable) == ("12.31", False)
    assert {k.theirs for k in table("als/table1", [one], METRIC).lines} == {None}
