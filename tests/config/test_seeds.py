from sparsemend.config.seeds import mix_seed


def test_the_numbers_of_two_seeds_are_apart() -> None:
    assert len({mix_seed(seed, number) for seed in range(4) for number in range(1000)}) == 4000


def test_runs_of_earlier_versions_drew_from_the_same_seeds() -> None:
    assert mix_seed(3, 5) == 3 * 1_000_003 + 5
