from sparsemend.errors import nearest

NAMES = ["method.rank", "method.alpha", "training.rank"]


def test_the_nearest_names_stand_in_one_line() -> None:
    assert nearest("method.rnk", NAMES, most=1) == "nearest: method.rank\n"
    assert nearest("qqq", NAMES) == ""


def test_names_are_compared_by_the_part_that_tells_them_apart() -> None:
    assert nearest("x.alpah", NAMES, part=lambda name: name.split(".")[-1]) == (
        "nearest: method.alpha\n"
    )
