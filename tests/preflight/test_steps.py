"""A step's windows are a count that all devices share evenly, checked without torch."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.preflight.steps import check_steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.windows_per_step=0",), r"method\.windows_per_step=0 is not an integer of at"),
        (("method.windows_per_step=2.5",), r"windows_per_step=2\.5 is not an integer"),
        (("hardware.micro_batch=0",), r"hardware\.micro_batch=0 is not .*micro_batch=null"),
        (
            ("hardware=ddp", "method.windows_per_step=5"),
            r"windows_per_step=5 cannot be shared out evenly over hardware\.devices=2; set "
            r"method\.windows_per_step=4 or 6",
        ),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_steps(compose("run", overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("hardware=ddp",),
        ("hardware.micro_batch=null",),
        ("method=none",),
        # blocks are tuned on the first device alone
        ("method=reconstruct", "hardware=ddp", "method.windows_per_step=5"),
    ],
)
def test_steps_that_can_be_taken_pass(overrides: tuple[str, ...]) -> None:
    check_steps(compose("run", overrides))
