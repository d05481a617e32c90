"""Values that a yaml line does not allow are refused in one line, with a legal one."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.configs import compose

from sparsemend.config.locations import conf_folder
from sparsemend.preflight import check as preflight
from sparsemend.preflight.declared import check_declared

AT_LEAST_1 = "is not an integer of at least 1"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("method.max_steps=abc", f"{AT_LEAST_1}; set for example method.max_steps=50"),
        ("method=lors method.alpha=x", "is not a number above 0; set for example method.alpha=16"),
        ("hardware.threads=-1", "is not an integer in [1, 1024], or null; set for example"),
        ("hardware.threads=100000", "is not an integer in [1, 1024], or null; set for example"),
        ("seed=a", "is not an integer of at least 0; set for example seed=0"),
        ("seed=1.5", "is not an integer of at least 0; set for example seed=0"),
        ("export=ja", "is not true or false; set for example export=false"),
        ("method.rank=-3", f"{AT_LEAST_1}; set for example method.rank=16"),
        (
            "method.optimizer=adam",
            "is not one of adamw, sgd, muon, adamw_8bit; set for example method.optimizer=adamw",
        ),
        (
            "method.schedule=linaer",
            "is not one of cosine, cosine_with_restarts, linear, polynomial, constant, "
            "constant_with_warmup; set for example method.schedule=linear",
        ),
        (
            "method.precision=bf16",
            "is not one of 32-true, bf16-mixed, 16-mixed, bf16-true; set for example "
            "method.precision=bf16-true",
        ),
        ("sparsity=1.2", "is not in [0, 1); set for example sparsity=0.6"),
        (
            "method.betas=[0.9,1.0]",
            "is not a list of 2 numbers in [0, 1); set for example method.betas=[0.9,0.95]",
        ),
        ("method.distill=0.5", "is not a mapping; set keys inside it, method.distill.weight=VALUE"),
        ("name=7", "is a number, not a string; quote it: name=\"'7'\""),
        ("data.seqlen=many", "is not an integer of at least 2; set for example data.seqlen=2048"),
        ("cache.when=never", "is not one of sweep, always"),
    ],
)
def test_a_value_that_its_line_does_not_allow_is_refused(lines: str, message: str) -> None:
    with pytest.raises(ValueError, match=" is ") as caught:
        preflight.check(compose("run", lines.split()))
    assert str(caught.value).startswith(f"{lines.split()[-1]} {message}")
    assert "\n" not in str(caught.value)


def test_a_wrong_element_of_a_list_is_named() -> None:
    lines = ["evaluation=[zero_shot]", "evaluation.zero_shot.states=[dense,prund]"]
    with pytest.raises(ValueError, match=r"prund\]: prund is not one of dense, pruned, repaired"):
        preflight.check(compose("run", lines))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("norms", r"trained=norms is not a list of biases, norms, .*; set .*trained=\[norms\]$"),
        ("[norm,bias]", r"\]: norm is not one of biases, norms, .*; set .*=\[norms,biases\]$"),
        ("[norms,x]", r"\]: x is not one of biases, .*; set .*=\[norms\]$"),
        ("x", r"=x is not a list of biases, .*; set .*=\[biases,norms\]$"),
    ],
)
def test_a_list_of_choices_is_corrected_to_a_list(given: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preflight.check(compose("run", ["method=perp", f"method.trained={given}"]))


def test_a_number_where_yaml_read_a_pattern_in_base_60_is_explained() -> None:
    with pytest.raises(ValueError, match=r"base 60, so quote it in the file, pattern: '2:4'"):
        preflight.check(compose("run", ["pattern=124"]))


@pytest.mark.parametrize(
    "tasks", ["[docs_summary,docs_continuation]", "docs_summary", "{docs_summary:2}"]
)
def test_tasks_may_be_a_list_or_a_name_as_users_of_the_harness_write_them(tasks: str) -> None:
    zero_shot = ["evaluation=[zero_shot]", f"evaluation.zero_shot.tasks={tasks}"]
    preflight.check(compose("run", zero_shot))


@pytest.mark.parametrize("tasks", ["[docs_sumary]", "{docs_summary:-1}", "{docs_summary:x}", "3"])
def test_tasks_that_no_harness_has_are_refused(tasks: str) -> None:
    with pytest.raises(ValueError, match=r"docs_summary|is not a mapping"):
        preflight.check(
            compose("run", ["evaluation=[zero_shot]", f"evaluation.zero_shot.tasks={tasks}"])
        )


def own(folder: Path, text: str, value: object) -> None:
    (folder / "method").mkdir(exist_ok=True)
    (folder / "method" / "mine.yaml").write_text(text)
    cfg = compose("run", ["method=none"])
    OmegaConf.set_struct(cfg, False)
    cfg.method = {"_target_": "mine.Mine", "strength": value}
    check_declared(cfg, [folder])


@pytest.mark.parametrize(
    ("default", "legal", "wrong"),
    [
        ("1", 2, 2.5),
        ("1e-3", 2, "x"),
        ("word", "other", 3),
        ("[1, 2]", ["a"], 1),
        ("null", 3, None),
    ],
)
def test_a_users_own_yaml_without_comments_is_held_to_the_types_of_its_defaults(
    default: str, legal: object, wrong: object, tmp_path: Path
) -> None:
    text = f"_target_: mine.Mine\nstrength: {default}\n"
    own(tmp_path, text, legal)
    if wrong is not None:
        with pytest.raises(ValueError, match=r"method\.strength="):
            own(tmp_path, text, wrong)


def test_what_a_users_own_yaml_includes_of_ours_is_held_to_our_bounds(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    text = "defaults: [{/training@_here_: default}]\n_target_: mine.Mine\nlearning_rate: 0.01\n"
    (tmp_path / "method" / "mine.yaml").write_text(text)
    cfg = compose("run", ["method.learning_rate=0"])
    cfg.method._target_ = "mine.Mine"
    with pytest.raises(ValueError, match=r"learning_rate=0 is not above 0; set .*rate=0\.01"):
        check_declared(cfg, [tmp_path])


@pytest.mark.slow
def test_every_experiment_keeps_to_the_declarations() -> None:
    folder = conf_folder() / "experiment"
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        check_declared(compose("run", [f"experiment={name}"]))


def test_a_key_that_is_a_mapping_in_one_member_alone_may_be_null_in_another(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    head = "# @package _global_\n"
    (tmp_path / "search" / "one.yaml").write_text(f"{head}search:\n  limit: null\n")
    (tmp_path / "search" / "two.yaml").write_text(f"{head}search:\n  limit:\n    blocks: 3\n")
    cfg = compose("run", ["+search=rank"])
    OmegaConf.set_struct(cfg, False)
    for limit in (None, {"blocks": 4}):
        cfg.search.limit = limit
        check_declared(cfg, [tmp_path])
    cfg.search.limit = {"blocks": "x"}
    with pytest.raises(ValueError, match=r"search\.limit\.blocks=x is not an integer"):
        check_declared(cfg, [tmp_path])
