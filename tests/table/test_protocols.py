from support import result_folders as made

from sparsemend.table.protocols import by_protocol, protocols

METRIC = "perplexity/test"


def test_runs_that_may_share_a_table_are_one_part() -> None:
    runs = [
        made.record("a"),
        made.record("b", protocol={"seqlen": 128}),
        made.record("c", model="other", protocol={"tokens": 7, "dtype": "bfloat16"}),
        made.record("d", protocol={"dtype": "bfloat16"}),
        made.record("e"),
    ]
    parts = by_protocol(runs, METRIC)
    assert [[str(run.folder) for run in part] for part in parts] == [["a", "c", "e"], ["b"], ["d"]]
    assert [len(protocols(part, METRIC)) for part in parts] == [2, 1, 1]
