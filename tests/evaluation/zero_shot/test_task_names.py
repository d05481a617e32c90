from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex
from support.configs import compose

from sparsemend.evaluation.zero_shot.task_names import (
    SHIPPED,
    answer_tokens,
    find_tasks,
    folders_of,
    harness_tasks,
    names_under,
)
from sparsemend.evaluation.zero_shot.zero_shot_checks import needs_whole_model
from sparsemend.preflight import check as preflight


def check(*overrides: str) -> None:
    lines = ["evaluation=[perplexity,zero_shot]", *overrides]
    preflight.check(compose("run", overrides=lines))


@pytest.mark.parametrize("folder", ["arc", "glue", "mmlu/default", "gsm8k", "super_glue", "race"])
def test_the_names_are_those_of_the_harnesss_own_index(folder: str) -> None:
    root = harness_tasks() / folder
    named = {Kind.TASK, Kind.PY_TASK, Kind.GROUP}
    expected = {name for name, entry in TaskIndex.build([root]).items() if entry.kind in named}
    assert set(names_under(root)) == expected


def test_the_shipped_tasks_load_from_their_folder_alone() -> None:
    manager = TaskManager(include_path=str(SHIPPED), include_defaults=False)
    assert set(manager.all_tasks) == set(names_under(SHIPPED))
    assert set(find_tasks(["docs_summary"], None).values()) == {SHIPPED}


def test_every_task_of_every_suite_exists() -> None:
    section = compose("run", ["evaluation=[zero_shot]"]).evaluation.zero_shot
    for suite in section.suites:
        check(f"evaluation.zero_shot.suite={suite}", "evaluation.zero_shot.max_length=2048")


def test_an_answer_that_leaves_no_room_for_the_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(
        "task: long\noutput_type: generate_until\ngeneration_kwargs: {max_new_tokens: 300}\n"
    )
    (tmp_path / "usual.yaml").write_text("task: usual\ninclude: base.txt\n")
    (tmp_path / "base.txt").write_text("output_type: generate_until\ninclude: usual.yaml\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [long, usual]\n")
    counts = answer_tokens(["both", "docs_summary"], str(tmp_path))
    assert counts == {"long": 300, "usual": 256}  # 256: what HFLM generates unless it is told
    lines = ["evaluation.zero_shot.tasks=[both]", f"evaluation.zero_shot.include_path={tmp_path}"]
    words = r"max_length=256 leaves no room for a question of \w+, whose answers take up to \d+"
    with pytest.raises(ValueError, match=words):
        check(*lines)
    check(*lines, "evaluation.zero_shot.max_length=301")


def test_tasks_that_generate_need_the_whole_model(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("task: long\noutput_type: generate_until\n")

    def reason(tasks: str) -> str | None:
        lines = [f"evaluation.zero_shot.{line}" for line in (tasks, f"include_path={tmp_path}")]
        cfg = compose("run", ["evaluation=[zero_shot]", *lines])
        return needs_whole_model(cfg.evaluation.zero_shot)

    assert reason("suite=docs") is None
    assert "tries out what fits beside a whole model" in str(reason("batch=auto:2"))
    generates = "long of evaluation.zero_shot.tasks generates answers token by token"
    assert generates in str(reason("tasks={docs_summary: 0, long: 0}"))


@pytest.mark.parametrize("batch", ["null", "16", "auto", "auto:4"])
def test_a_number_of_items_or_what_fits_a_gpu_may_be_asked_at_once(batch: str) -> None:
    check(f"evaluation.zero_shot.batch={batch}")


@pytest.mark.parametrize("batch", ["0", "-1", "most", "auto:"])
def test_another_number_of_items_at_once_is_refused(batch: str) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.zero_shot\.batch="):
        check(f"evaluation.zero_shot.batch={batch}")


@pytest.mark.slow  # the harness reads all of its tasks; the test below finds a group among them
def test_a_group_of_tasks_that_lie_elsewhere_finds_them(tmp_path: Path) -> None:
    group = (
        "group: mine\ntask:\n  - docs_continuation\n  - task: docs_summary\n    num_fewshot: 1\n"
    )
    (tmp_path / "mine.yaml").write_text(group)
    assert folders_of(["mine"], str(tmp_path)) == {tmp_path, SHIPPED}
    manager = TaskManager(
        include_path=[str(f) for f in folders_of(["mine"], str(tmp_path))], include_defaults=False
    )
    assert manager.load(["mine"])
    assert folders_of(["docs_summary"], None) == {SHIPPED}


def test_a_folder_found_for_a_group_holds_its_tasks() -> None:
    found = find_tasks(["mmlu", "hellaswag"], None)
    manager = TaskManager(include_path=[str(p) for p in found.values()], include_defaults=False)
    assert "mmlu" in manager.all_groups
    for name in ("mmlu_stem", "mmlu_abstract_algebra", "hellaswag"):
        assert name in manager.all_tasks


def test_an_unknown_task_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"named 'helaswag'; did you mean .*hellaswag"):
        check("evaluation.zero_shot.tasks={helaswag: 0}")


def test_an_unknown_suite_and_an_empty_list_are_refused() -> None:
    with pytest.raises(ValueError, match=r"suite=wandas is not one of docs, wanda, atp"):
        check("evaluation.zero_shot.suite=wandas")
    with pytest.raises(ValueError, match=r"tasks is empty; name at least one"):
        check("evaluation.zero_shot.tasks={}")


def test_tasks_of_ones_own_are_found_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine  # a comment\ntag: x\n")
    (tmp_path / "arc.yaml").write_text('task: "arc_easy"\n')
    check("evaluation.zero_shot.tasks={mine: 0}", f"evaluation.zero_shot.include_path={tmp_path}")
    assert find_tasks(["arc_easy", "mine"], str(tmp_path)) == {
        "arc_easy": tmp_path,
        "mine": tmp_path,
    }
    with pytest.raises(FileNotFoundError, match="is no folder"):
        check(f"evaluation.zero_shot.include_path={tmp_path / 'absent'}")
