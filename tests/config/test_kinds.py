"""Many linears in few words, that say exactly which."""

from __future__ import annotations

import pytest

from sparsemend.config.kinds import kinds

EXPERTS = [f"layers.{b}.experts.{e}.up" for b in range(3) for e in range(8)]
STACK = [f"layers.{b}.experts.down_proj[{e}]" for b in range(3) for e in range(8)]
OTHERS = ["layers.0.up", "0.fc1", "1.fc1", "head"]


def some(*wanted: tuple[int, int]) -> list[str]:
    return [f"layers.{b}.experts.{e}.up" for b, e in wanted]


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (EXPERTS, ["layers.*.experts.*.up"]),
        ([name for name in EXPERTS if name[-4] in "1357"], ["layers.*.experts.{1,3,5,7}.up"]),
        ([name for name in EXPERTS if ".1." in name[:9]], ["layers.1.experts.*.up"]),
        (some((0, 2), (2, 2), (2, 3)), ["layers.0.experts.2.up", "layers.2.experts.{2,3}.up"]),
        (some((0, 2), (2, 2)), ["layers.{0,2}.experts.2.up"]),
        (some((1, 0), (1, 1), (1, 2), (1, 5)), ["layers.1.experts.{0-2,5}.up"]),
        ([STACK[0], STACK[8], STACK[16]], ["layers.*.experts.down_proj[0]"]),
        ([STACK[1], STACK[3]], ["layers.0.experts.down_proj[{1,3}]"]),
        (OTHERS, ["layers.0.up", "*.fc1", "head"]),
        (["0.fc1"], ["0.fc1"]),
    ],
)
def test_a_star_stands_for_all_and_braces_say_which(names: list[str], entries: list[str]) -> None:
    assert kinds(names, [*EXPERTS, *STACK, *OTHERS]) == entries


def test_what_takes_too_many_words_is_counted() -> None:
    every = [f"layers.{b}.experts.{e}.up" for b in range(8) for e in range(8)]
    diagonal = [f"layers.{b}.experts.{b}.up" for b in range(8)]
    assert kinds(diagonal, every) == ["8 of 64 of layers.*.experts.*.up"]
