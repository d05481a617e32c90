"""The answer as a table and as JSON; the disk."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from sparsemend.doctor.disk import disk_finding
from sparsemend.doctor.report import Examination, Relief, show
from sparsemend.doctor.verdict import Capacity, Finding, Need, Verdict

GB = 10**9
CARD = Capacity(64 * GB, 24 * GB, 100 * GB, "a card")
NEEDS = [
    Need("load", "host", 14 * GB, "model.py:1", 64 * GB),
    Need("repair: fit", "device", 130 * GB, "fit.py:2", 24 * GB),
    Need("repair: fit", "host", 2 * GB, "fit.py:3", 64 * GB),
]


def report(relief: Relief | None = None) -> Examination:
    fine = Finding("settings", Verdict.GO, "the command accepts them")
    return Examination(["model=local"], CARD, NEEDS, [fine], {"masks": 5}, 32, relief)


def shown(answer: Examination) -> str:
    text = io.StringIO()
    show(answer, Console(file=text, width=140))
    return text.getvalue()


def test_a_row_has_both_devices_and_the_line_of_the_tighter_one() -> None:
    row = next(line for line in shown(report()).splitlines() if "repair: fit" in line)
    assert [part.strip() for part in row.strip("│ ").split("│")] == [
        "repair: fit",
        "130.00",
        "2.00",
        "fit.py:2",
        "no-go",
    ]


def test_the_verdict_stands_at_the_end_and_in_the_json() -> None:
    assert shown(report()).splitlines()[-1] == "no-go"
    written = report().to_json()
    assert written["verdict"] == "no-go"
    assert written["needs"][1]["peak_bytes"] == 130 * GB


def test_overrides_that_help_are_named_with_what_they_change() -> None:
    relief = Relief(["hardware.micro_batch=1"], {("repair: fit", "device"): 16 * GB}, True, ["x"])
    line = "with hardware.micro_batch=1 (x): every stage fits, at most 16.0 GB"
    assert line in shown(report(relief))


def test_files_are_counted_with_the_largest_once_more() -> None:
    files = {"best.ckpt": 30 * GB, "masks": 5 * GB}
    assert disk_finding(files, Capacity(None, None, 65 * GB, "")).verdict is Verdict.GO
    small = disk_finding(files, Capacity(None, None, 64 * GB, ""))
    assert small.verdict is Verdict.NO_GO
    assert small.says.startswith("65.00 GB to write (best.ckpt 30.00")
    assert disk_finding(files, CARD.__class__(None, None, None, "")).verdict is Verdict.UNKNOWN


def test_seconds_stand_beside_their_stage_and_are_added_up() -> None:
    text = shown(replace(report(), seconds={"repair: fit": 1234.4}))
    row = next(line for line in text.splitlines() if "repair: fit" in line)
    assert row.strip("│ ").endswith("1,234")
    assert "1,234 seconds in all (estimate" in text
    assert "seconds" not in shown(report())
