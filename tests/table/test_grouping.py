from support import result_folders as made

from sparsemend.result.runs import DENSE, RunRecord
from sparsemend.table.grouping import by_settings, group_states, ours_of


def ranked(rank: int, seed: int = 0, **changes: float) -> RunRecord:
    return made.record(knobs={"rank": rank, "alpha": 16}, seed=seed, **changes)


def test_runs_are_told_apart_by_the_knobs_that_differ_alone() -> None:
    runs = [ranked(8), ranked(16), ranked(8, seed=1)]
    assert [(settings, len(same)) for settings, same in by_settings(runs, "repaired")] == [
        ({"method.rank": 8}, 2),
        ({"method.rank": 16}, 1),
    ]
    assert [settings for settings, _ in by_settings(runs, "pruned")] == [{}]


def test_a_group_is_one_row_of_one_model_in_one_state() -> None:
    runs = [ranked(8), ranked(8, seed=1), made.record(model="other")]
    groups = group_states((row, state, run) for run in runs for row, state in run.states())
    assert [(group.model, group.state, len(group.runs)) for group in groups] == [
        *(("tiny", state, 2) for state in ("dense", "pruned", "repaired")),
        *(("other", state, 1) for state in ("dense", "pruned", "repaired")),
    ]
    assert groups[0].row == DENSE


def test_a_number_is_the_mean_of_the_runs_that_have_it() -> None:
    runs = [ranked(8, repaired=10.0), ranked(8, seed=1, repaired=20.0)]
    (group,) = group_states((run.row, "repaired", run) for run in runs)
    assert group.metric("perplexity/test") == 15.0
    assert group.metric("perplexity/task") is None
    assert group.metric_deviation("perplexity/task") == 0.0


def test_a_repeated_seed_counts_once() -> None:
    pairs = [(ranked(8), 10.0), (ranked(8), 20.0), (ranked(8, seed=1), 5.0)]
    assert ours_of(pairs).values == (15.0, 5.0)
    assert ours_of(pairs).runs == 3
