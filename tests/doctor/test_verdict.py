"""Go, no-go, unknown: of a need and of all of them."""

from __future__ import annotations

import pytest

from sparsemend.doctor.verdict import Need, Verdict

GO, NO_GO, UNKNOWN = Verdict.GO, Verdict.NO_GO, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("all_", "verdict"),
    [
        ([], GO),
        ([GO, GO], GO),
        ([GO, UNKNOWN], UNKNOWN),
        ([UNKNOWN, NO_GO, GO], NO_GO),
    ],
)
def test_one_no_go_decides_and_then_one_unknown(all_: list[Verdict], verdict: Verdict) -> None:
    assert Verdict.of_all(all_) is verdict


def test_the_exit_code_says_the_verdict() -> None:
    assert [v.exit_code for v in (GO, NO_GO, UNKNOWN)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("there", "verdict"), [(None, UNKNOWN), (24 * 10**9, GO), (20 * 10**9, NO_GO)]
)
def test_a_need_has_room_for_what_an_allocator_takes_besides(
    there: int | None, verdict: Verdict
) -> None:
    # 20 GB, and 8 % and 0.6 GB more
    assert Need("load", "device", 20 * 10**9, "a:1", there).verdict is verdict


def test_the_host_holds_an_imported_process_too() -> None:
    need = Need("load", "host", 10**10, "a:1", 13 * 10**9)
    assert need.with_margin == pytest.approx(1.15e10 + 1e9)
