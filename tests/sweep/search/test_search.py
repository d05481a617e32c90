"""The search through Hydra and Optuna, around a given objective in place of a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig

from sparsemend.sparsity_schedule.rates.progression import bound
from sparsemend.sweep.search.samplers import GOLDEN, next_golden

SEARCH = ("-m", "+search=atp_common_difference", "hydra.sweep.dir=out")
LIMIT = bound(0.6, 6)


def difference(cfg: DictConfig) -> float:
    return float(cfg.sparsity_schedule.common_difference)


def bowl(lowest: float) -> Callable[[DictConfig], float]:
    return lambda cfg: 20 + 1e4 * (difference(cfg) - lowest) ** 2


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(
        study_name="sparsity_schedule.common_difference", storage=f"sqlite:///{folder}/search.db"
    )


def test_the_listed_points_are_tried_in_order_and_the_best_is_ready_to_paste(
    command, tmp_path, capsys
) -> None:
    code, seen = command(*SEARCH, "pruner=magnitude", run=bowl(0.05))
    assert code == 0
    assert [difference(cfg) for cfg in seen] == [LIMIT * (k / 9) for k in range(10)]
    assert {cfg.method._target_.split(".")[-1] for cfg in seen} == {"NoRepair"}
    said = capsys.readouterr().out.replace("\n", " ")
    best = LIMIT * (3 / 9)
    assert (
        "best: sparsemend sparsity_schedule=atp method=none pruner=magnitude rounding=exact_budget "
        f"sparsity_schedule.common_difference={best}" in said
    )
    assert "optimism gap 0.0000" in said
    assert "rounding=exact_budget" in said.partition("best:")[0]
    assert "achieved" in said
    assert (tmp_path / "out" / "search.png").stat().st_size > 5000
    assert (tmp_path / "out" / "search.svg").exists()


def test_a_killed_search_goes_on_with_the_trials_that_are_missing(command, tmp_path) -> None:
    class Killed(BaseException):
        pass

    def dying(cfg: DictConfig) -> float:
        if difference(cfg) > 0.09:
            raise Killed
        return bowl(0.05)(cfg)

    lines = (*SEARCH, "search.count=5")
    with pytest.raises(Killed):
        command(*lines, run=dying)
    assert [t.state.name for t in study(tmp_path / "out").trials[-2:]] == ["COMPLETE", "RUNNING"]
    code, seen = command(*lines, run=bowl(0.05))
    assert code == 0
    assert [difference(cfg) for cfg in seen] == [LIMIT * (k / 5) for k in range(3, 6)]
    assert study(tmp_path / "out").best_trial.params == {
        "sparsity_schedule.common_difference": LIMIT * (2 / 5)
    }
    code, seen = command(*lines, run=bowl(0.05))
    assert (code, seen) == (0, [])  # nothing is missing any more


@pytest.mark.parametrize(("sampler", "last"), [("golden", 1), ("tpe", 3)])
def test_an_interval_loses_no_value_to_a_kill(
    command, tmp_path, capsys, sampler: str, last: int
) -> None:
    class Killed(BaseException):
        pass

    tried: list[float] = []

    def dying(cfg: DictConfig) -> float:
        tried.append(difference(cfg))
        if len(tried) == last:
            raise Killed
        return bowl(0.05)(cfg)

    lines = (*SEARCH, f"search.sampler={sampler}", "search.trials=3")
    with pytest.raises(Killed):
        command(*lines, run=dying)
    capsys.readouterr()
    code, then = command(*lines, run=bowl(0.05))
    assert (code, len(then)) == (0, 5 - last)  # 0: no cell is reported as missing
    assert difference(then[0]) == tried[-1]
    said = capsys.readouterr().out
    assert "baseline" in said.partition("best:")[0]
    assert "missing" not in said
    assert command(*lines, run=bowl(0.05)) == (0, [])


def test_a_baseline_that_waited_when_the_search_was_killed_keeps_its_cell(
    command, tmp_path
) -> None:
    lines = (*SEARCH, "search.sampler=golden", "search.trials=2")
    (tmp_path / "out").mkdir()
    waiting = optuna.create_study(
        study_name="sparsity_schedule.common_difference",
        storage=f"sqlite:///{tmp_path}/out/search.db",
    )
    waiting.enqueue_trial({"sparsity_schedule.common_difference": 0.0})
    code, seen = command(*lines, run=bowl(0.05))
    assert (code, [difference(cfg) for cfg in seen].count(0), len(seen)) == (0, 1, 3)
    assert sorted(path.name for path in (tmp_path / "out").glob("[0-9]")) == ["0", "1", "2"]


def test_a_finished_trial_without_a_finite_objective_is_not_run_again(command, tmp_path) -> None:
    class Killed(BaseException):
        pass

    def run(cfg: DictConfig) -> float:
        return math.nan if difference(cfg) == 0 else bowl(0.05)(cfg)

    def dying(cfg: DictConfig) -> float:
        if difference(cfg) > 0.09:
            raise Killed
        return run(cfg)

    for kind in (("search.count=2",), ("search.sampler=golden", "search.trials=2")):
        lines = (*SEARCH[:2], *kind, f"hydra.sweep.dir={len(kind)}")
        with pytest.raises(Killed):
            command(*lines, run=dying)
        code, seen = command(*lines, run=run)
        assert (code, len(seen)) == (0, 1), kind
        assert difference(seen[0]) > 0.09
        assert command(*lines, run=run) == (0, []), kind


@pytest.mark.slow  # a killed search goes on, in the test before
def test_a_trial_whose_cell_finished_before_the_kill_is_not_run_again(command, tmp_path) -> None:
    command(*SEARCH, "search.points=[0.01]", run=bowl(0.05))
    known = study(tmp_path / "out")
    lost = known.ask()  # as if the search died between the job's end and noting its value
    lost.suggest_categorical("sparsity_schedule.common_difference", [0.0, 0.01])
    folder = tmp_path / "out" / str(lost.number)
    folder.mkdir()
    shutil.copy(tmp_path / "out" / "0" / "result.json", folder)
    code, seen = command(*SEARCH, "search.points=[0.01]", run=bowl(0.05))
    assert (code, seen) == (0, [])
    trials = study(tmp_path / "out").trials
    assert trials[lost.number].value == trials[0].value


def test_a_broken_storage_of_a_search_is_one_line(command, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.db").write_text("no database at all " * 99)
    code, seen = command(*SEARCH)
    assert (code, seen) == (1, [])
    said = capsys.readouterr().err
    assert "error: the search's storage sqlite:///out/search.db: DatabaseError: " in said
    assert "Traceback" not in said


def test_a_nan_is_a_failed_trial_and_the_search_goes_on(command, tmp_path) -> None:
    def run(cfg: DictConfig) -> float:
        return math.nan if difference(cfg) < 0.03 else bowl(0.05)(cfg)

    code, seen = command(*SEARCH, "search.count=5", run=run)
    assert (code, len(seen)) == (0, 6)
    states = [trial.state.name for trial in study(tmp_path / "out").trials]
    assert states == ["FAIL"] * 1 + ["COMPLETE"] * 5


def test_if_every_trial_fails_the_first_error_is_said(command, capsys) -> None:
    def run(cfg: DictConfig) -> float:
        raise ValueError(f"difference {difference(cfg)} is not to my taste")

    code, seen = command(*SEARCH, "search.points=[0.01,0.02]", run=run)
    assert (code, len(seen)) == (1, 3)
    printed = capsys.readouterr()
    assert "every trial failed; the first error, in out/0: difference 0.0 is not" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.slow  # a trial that is not finite is tested here
def test_if_no_perplexity_is_finite_it_says_so(command, capsys) -> None:
    code, _ = command(*SEARCH, "search.points=[0.01]", run=lambda cfg: math.nan)
    assert code == 1
    assert "every trial gave a perplexity that is not finite" in capsys.readouterr().err


@pytest.mark.slow  # the golden section by itself is tested below
@pytest.mark.parametrize("sampler", ["golden", "tpe"])
def test_samplers_of_an_interval_stay_legal_and_come_near(command, sampler: str) -> None:
    lines = (*SEARCH, f"search.sampler={sampler}", "search.trials=9")
    code, seen = command(*lines, run=bowl(0.05))
    values = [difference(cfg) for cfg in seen]
    assert (code, len(values)) == (0, 10)
    assert values[0] == 0  # the baseline
    assert all(0 <= value <= LIMIT for value in values)
    # golden section: 9 evaluations leave an interval of GOLDEN ** 8 of the whole
    near = LIMIT * (GOLDEN**8 if sampler == "golden" else 0.25)
    assert min(abs(value - 0.05) for value in values) <= near


@pytest.mark.slow  # the sampler is tested below, going on above
def test_a_golden_section_that_is_killed_goes_on_to_the_same_points(command, tmp_path) -> None:
    lines = ("-m", "+search=atp_common_difference", "search.sampler=golden", "search.trials=6")
    _, undisturbed = command(*lines, "hydra.sweep.dir=one", run=bowl(0.1))
    count = 0

    def dying(cfg: DictConfig) -> float:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return bowl(0.1)(cfg)

    code, first = command(*lines, "hydra.sweep.dir=two", run=dying)
    assert code == 130
    _, then = command(*lines, "hydra.sweep.dir=two", run=bowl(0.1))
    seen = [*first[:3], *then]
    assert [difference(cfg) for cfg in seen] == [difference(cfg) for cfg in undisturbed]


def test_golden_section_shrinks_the_interval_by_the_golden_ratio_per_evaluation() -> None:
    known: dict[float, float] = {}
    for _ in range(12):
        point = next_golden(0.0, 1.0, known)
        known[point] = (point - 0.3) ** 2
    # by hand for a minimum at 0.3: [0, 1] -> [0, .618] -> [0, .618] inner .236, .382 -> ...
    assert list(known)[:4] == pytest.approx([0.381966, 0.618034, 0.236068, 0.145898], abs=1e-6)
    distances = [abs(point - 0.3) for point in known]
    for evaluations in range(2, 12):
        assert min(distances[:evaluations]) <= GOLDEN ** (evaluations - 1)


def test_golden_section_leaves_failures_and_narrows_to_the_lower_side_on_ties() -> None:
    left, right = 1 - GOLDEN, GOLDEN
    assert next_golden(0, 1, {}) == left
    assert next_golden(0, 1, {left: 1.0}) == right
    tied = next_golden(0, 1, {left: 1.0, right: 1.0})
    failed = next_golden(0, 1, {left: math.inf, right: 1.0})
    assert tied < left
    assert failed > right


def test_a_null_among_the_points_is_tried_as_null(command, capsys) -> None:
    lines = (
        "search.key=sparsity_schedule.delta",
        "sparsity_schedule=rmi",
        "search.points=[null,0.05]",
    )
    code, seen = command(
        "-m", "+search=rank", *lines, "hydra.sweep.dir=out", "method=none",
        run=lambda cfg: 1.0 if cfg.sparsity_schedule.delta is None else 2.0,
    )  # fmt: skip
    assert (code, [cfg.sparsity_schedule.delta for cfg in seen]) == (0, [None, 0.05])
    assert "sparsity_schedule.delta=null" in capsys.readouterr().out.replace("\n", "")


def test_selecting_by_test_is_the_papers_protocol(command, capsys) -> None:
    code, seen = command(*SEARCH, "search.points=[0.002,0.004]", "search.select_on=test")
    assert code == 0
    assert {cfg.search.select_on for cfg in seen} == {"test"}
    assert "select_on=test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("search.points=[0.3]",), "common_difference 0.3 exceeds"),
        (("sparsity=0.5,0.6",), "would sweep inside a search"),
        (("sparsity_schedule.common_difference=0.1",), "fixes what the search varies"),
        (("search.select_on=train",), "search.select_on=train is not validation or test"),
        (("evaluation.perplexity.validation=false",), "validation=false does not measure it"),
        (("evaluation=[]",), "a perplexity, which evaluation does not measure"),
        (("evaluation=[speed]", "search.select_on=test"), "which evaluation does not measure"),
        (
            ("search.low=-0.1",),
            "search.low=-0.1 has no effect without search.sampler=golden or tpe",
        ),
        (("search.points=[0.1]", "search.count=2"), "no effect without search.points=spread"),
        (
            ("search.sampler=golden", "search.points=[0.1]"),
            "no effect without search.sampler=listed",
        ),
        (("search.sampler=golden", "search.log=true"), "no effect without search.sampler=tpe"),
        (("search.sampler=golden", "search.jobs=2"), "depends on the one before"),
        (("search.jobs=0",), "search.jobs=0 is not an integer"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_its_first_job(
    command, capsys, tmp_path, overrides: tuple[str, ...], message: str
) -> None:
    code, seen = command(*SEARCH, *overrides)
    assert (code, seen, (tmp_path / "out").exists()) == (1, [], False)
    assert message in capsys.readouterr().err


def test_a_search_without_m_says_so(command, capsys) -> None:
    code, seen = command("+search=atp_common_difference")
    assert (code, seen) == (1, [])
    assert "add -m" in capsys.readouterr().err


def test_another_search_in_the_same_folder_is_refused(command, capsys) -> None:
    command(*SEARCH, "search.points=[0.01]", run=bowl(0.05))
    code, seen = command(*SEARCH, "search.points=[0.02]", run=bowl(0.05))
    assert (code, seen) == (1, [])
    assert "out holds another search" in capsys.readouterr().err


@pytest.mark.slow  # by the samplers of the tests above
def test_the_same_machinery_searches_other_keys(command) -> None:
    # folders of their own: those named by date and time are one within a second
    lines = ("-m", "+search=rank", "method=lors", "hydra.sweep.dir=rank")
    code, seen = command(*lines, run=lambda cfg: 1 / cfg.method.rank)
    assert (code, [cfg.method.rank for cfg in seen]) == (0, [2, 4, 8, 16, 32])
    lines = ("-m", "+search=drop_fraction", "method=seft", "hydra.sweep.dir=fraction")
    code, seen = command(*lines, run=lambda cfg: 1.0)
    assert [cfg.method.initial_drop_rate for cfg in seen] == [0.05, 0.1, 0.2, 0.3, 0.5]
    rates: list[Any] = []

    def run(cfg: DictConfig) -> float:
        rates.append(cfg.method.learning_rate)
        return abs(math.log10(cfg.method.learning_rate) + 3)

    lines = ("-m", "+search=learning_rate", "method=lors", "hydra.sweep.dir=rate")
    code, _ = command(*lines, "search.trials=6", run=run)
    assert (code, len(rates)) == (0, 6)
    assert all(1e-4 <= rate <= 3e-2 for rate in rates)
