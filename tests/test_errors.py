import errno
import json
import os
from collections.abc import Callable

import pytest
import torch

from sparsemend.errors import (
    LONGEST,
    USER_ERRORS,
    blame,
    blame_disk,
    brief,
    full_disk,
    lacks_disk,
    nearest,
)
from sparsemend.files import file_digest

NAMES = ["method.rank", "method.alpha", "training.rank"]


def test_the_nearest_names_stand_in_one_line() -> None:
    assert nearest("method.rnk", NAMES, most=1) == "nearest: method.rank\n"
    assert nearest("qqq", NAMES) == ""


def test_names_are_compared_by_the_part_that_tells_them_apart() -> None:
    assert nearest("x.alpah", NAMES, part=lambda name: name.split(".")[-1]) == (
        "nearest: method.alpha\n"
    )


def raise_in_a_library(error: Exception) -> None:
    def hook(pairs: object) -> None:
        raise error

    json.loads("{}", object_pairs_hook=hook)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("no\n sentencepiece.\n"), "ImportError: no sentencepiece"),
        (EOFError(), "EOFError"),
        (AssertionError(), "AssertionError"),
        (KeyError("model"), "KeyError: 'model'"),
        (OSError("cannot\nbe read;"), "cannot be read"),
    ],
)
def test_what_a_library_raises_on_an_input_is_one_line_that_names_the_input(
    error: Exception, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught, blame("model.path=x", "give y"):
        raise_in_a_library(error)
    assert str(caught.value) == f"model.path=x: {said}; give y"
    assert caught.value.__cause__ is error


def fault_of_ours() -> None:
    file_digest(None)  # type: ignore[arg-type]


def python_out_of_memory() -> None:
    raise_in_a_library(MemoryError())


def torch_out_of_memory() -> None:
    torch.empty(2**62, dtype=torch.uint8)


def gpu_error() -> None:
    raise_in_a_library(RuntimeError("CUDA error: device-side assert triggered"))


def interrupt() -> None:
    raise_in_a_library(KeyboardInterrupt())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (fault_of_ours, AttributeError),
        (python_out_of_memory, MemoryError),
        (torch_out_of_memory, RuntimeError),
        (gpu_error, RuntimeError),
        (interrupt, KeyboardInterrupt),
    ],
)
def test_a_fault_of_ours_and_of_the_machine_is_not_blamed_on_the_input(
    act: Callable[[], None], kind: type[BaseException]
) -> None:
    with pytest.raises(kind), blame("model.path=x", "give y"):
        act()


def test_an_error_in_our_own_words_passes_a_blame() -> None:
    outer, inner = blame("data", "give y"), blame("sparsity 2 is not in [0, 1)", "give less")
    with pytest.raises(USER_ERRORS) as caught, outer, inner:
        raise_in_a_library(KeyError("x"))
    assert str(caught.value) == "sparsity 2 is not in [0, 1): KeyError: 'x'; give less"


def test_a_long_message_is_cut() -> None:
    assert len(brief(ValueError("word " * 1000))) <= LONGEST + 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_a_share_of_it_and_a_largest_file_can_be_full(code: int) -> None:
    words = os.strerror(code)
    for error in (OSError(code, words), RuntimeError(f"I/O error: {words} (os error {code})")):
        assert lacks_disk(error)
        with pytest.raises(OSError, match=f"^here: the disk is full .*{words}"), blame_disk("here"):
            raise error
    assert not lacks_disk(full_disk("here", OSError(code, words)))  # not twice


def test_an_error_that_is_no_full_disk_passes() -> None:
    with pytest.raises(ValueError, match=r"^other$"), blame_disk("here"):
        raise ValueError("other")
