"""The command line of the doctor: what it cannot examine ends in one line."""

from __future__ import annotations

import pytest

from sparsemend.cli.doctor import main


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["-m", "sparsity=0.5"], 2, "one run: leave -m out"),
        (["sparsity=0.5,0.6"], 2, "give each key one value"),
        (["seed=range(3)"], 2, "give each key one value"),
        (["hydra.mode=MULTIRUN"], 2, "one run"),
        (["+search=learning_rate"], 2, "one run"),
        (["foo=1"], 2, "`sparsemend --help` lists"),
        # overrides may stand on both sides of an option
        (["method=none", "--device-gb", "24", "hardware=cpu"], 1, "add hardware=gpu"),
    ],
)
def test_what_is_no_single_run_is_answered_in_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == code
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-1", "many"])
def test_gigabytes_are_a_number_above_zero(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--host-gb", text])
    assert stop.value.code == 2
    assert f"{text} is no number of GB above 0" in capsys.readouterr().err
