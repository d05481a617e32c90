"""Keys that are gone are answered with the new key and the value to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sparsemend.config.compose import compose_command
from sparsemend.config.renamed import check_config, check_stored
from sparsemend.errors import OverrideError


def composed(*lines: str, multirun: bool = False) -> None:
    compose_command(list(lines), multirun=multirun)


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (("method.batch_size=2",), "give method.windows_per_step=2 hardware.micro_batch=2"),
        (
            ("method.batch_size=2", "method.accumulate=4", "hardware=ddp"),
            "give method.windows_per_step=16 hardware.micro_batch=2",
        ),
        (
            ("method.accumulate=4",),
            "method.accumulate=4 is gone: a step reads method.windows_per_step windows, over all "
            "devices; give method.windows_per_step=32 hardware.micro_batch=8",
        ),
        (
            ("experiment=arena", "arena.batch_size=1", "arena.accumulate=8"),
            "give arena.windows_per_step=8 hardware.micro_batch=1",
        ),
        (
            ("method.activation_checkpointing=true",),
            "it changes no number; give hardware.activation_checkpointing=true",
        ),
        (
            ("hardware.walk_batch=4",),
            "hardware.walk_batch is gone: calibration sees one window at a time, and masks do not "
            "depend on it",
        ),
    ],
)
def test_an_override_of_a_key_that_is_gone_names_the_new_one_and_its_value(
    lines: tuple[str, ...], answer: str
) -> None:
    with pytest.raises(OverrideError) as caught:
        composed(*lines)
    assert str(caught.value).endswith(answer)
    assert "\n" not in str(caught.value)


def test_any_other_unknown_key_is_answered_as_ever() -> None:
    with pytest.raises(OverrideError, match=r"unknown key 'hardware\.batch_size'"):
        composed("hardware.batch_size=2")


def test_a_yaml_of_the_user_s_that_still_sets_it_is_refused() -> None:
    cfg = OmegaConf.create({"method": {"windows_per_step": 8, "batch_size": 4}})
    with pytest.raises(ValueError, match=r"method\.batch_size=4 is gone: .* \(now 8\)"):
        check_config(cfg)


def test_a_method_that_has_no_steps_may_have_such_a_key() -> None:
    check_config(OmegaConf.create({"method": {"batch_size": 4}}))
    check_stored({"method": {"_target_": "own.Own", "batch_size": 4}}, Path("run"))


@pytest.mark.parametrize(
    ("config", "new"),
    [
        (
            {"method": {"batch_size": 2, "accumulate": 4}, "hardware": {"devices": 2}},
            r"method\.batch_size=2 method\.accumulate=4; .* again with "
            r"method\.windows_per_step=16 hardware\.micro_batch=2",
        ),
        ({"method": {"batch_size": 8}}, r"method\.windows_per_step=8 hardware\.micro_batch=8"),
        ({"arena": {"batch_size": 1, "accumulate": 8}}, r"arena\.windows_per_step=8"),
    ],
)
def test_a_run_of_before_is_refused_with_what_to_give(config: dict[str, Any], new: str) -> None:
    if "method" in config:
        config["method"]["_target_"] = "sparsemend.method.lors.lors.Lors"
    with pytest.raises(ValueError, match=rf"^run holds a run of an earlier version, with .*{new}"):
        check_stored(config, Path("run"))


def test_a_run_of_now_is_not_refused() -> None:
    target = "sparsemend.method.lors.lors.Lors"
    check_stored({"method": {"_target_": target, "windows_per_step": 8}}, Path("run"))
