"""How the windows of a step are shared out over processes and micro-batches."""

from __future__ import annotations

from itertools import chain

import pytest

from sparsemend.training.batches import Order, SteppedBatches, StepSplit


def read(**settings: int | None) -> list[list[list[int]]]:
    """The rows of steps 1 to 4 out of 7, each a list of micro-batches."""
    split = StepSplit(windows=6, **{"micro_batch": None, **settings})  # type: ignore[arg-type]
    batches = list(SteppedBatches(Order(7, seed=1), split, steps=5, start=lambda: 1))
    assert len(batches) == 4 * split.count
    return [batches[i : i + split.count] for i in range(0, len(batches), split.count)]


@pytest.mark.parametrize(
    ("micro_batch", "sizes"), [(None, [6]), (9, [6]), (6, [6]), (4, [4, 2]), (1, [1] * 6)]
)
def test_a_step_is_split_into_micro_batches_of_which_the_last_may_be_smaller(
    micro_batch: int | None, sizes: list[int]
) -> None:
    whole, steps = read(), read(micro_batch=micro_batch)
    assert [[len(rows) for rows in step] for step in steps] == [sizes] * 4
    assert [list(chain(*step)) for step in steps] == [step[0] for step in whole]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_read_together_what_one_reads(world: int) -> None:
    shares = [read(rank=rank, world=world, micro_batch=2) for rank in range(world)]
    for step, (rows,) in enumerate(read()):
        together = [row for share in shares for part in share[step] for row in part]
        assert sorted(together) == sorted(rows)


@pytest.mark.parametrize(
    ("windows", "world", "choices"), [(6, 4, "4 or method.windows_per_step=8"), (2, 4, "4")]
)
def test_windows_that_devices_cannot_share_evenly_are_refused(
    windows: int, world: int, choices: str
) -> None:
    choices = choices.replace("method.windows_per_step=", "")
    with pytest.raises(ValueError, match=rf"hardware\.devices={world}; set .*step={choices}$"):
        StepSplit(windows=windows, micro_batch=None, world=world)


def test_a_micro_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hardware\.micro_batch 0 is below 1"):
        StepSplit(windows=6, micro_batch=0)
