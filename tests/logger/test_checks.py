"""What a logger needs is known before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.configs import compose

from sparsemend.config.compose import compose_command
from sparsemend.config.locations import conf_folder
from sparsemend.preflight import check as preflight

VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC")


@pytest.fixture(autouse=True)
def a_home_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    return tmp_path


def check(*overrides: str) -> None:
    preflight.check(compose("run", list(overrides)))


def test_going_online_without_a_key_is_refused_with_the_way_to_go_offline() -> None:
    with pytest.raises(ValueError, match=r"no API key for https://api\.wandb\.ai.*mode=offline"):
        check("logger=wandb")
    check("logger=wandb", "logger.wandb.mode=offline")
    check("logger=wandb", "logger.wandb.mode=disabled")


def test_the_mode_follows_the_variable_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    check("logger=wandb")


def test_a_key_in_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    check("logger=wandb")


def test_a_key_in_the_netrc_counts_for_its_own_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    check("logger=wandb")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = https://our.server\n")
    with pytest.raises(ValueError, match=r"no API key for https://our\.server"):
        check("logger=wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    check("logger=wandb")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("mode=ofline", "logger.wandb.mode=ofline is not one of online, offline, disabled"),
        ("artifacts=[weights]", "weights is not one of result, masks, adapter, model"),
        ("artifacts=[model]", "export=false writes none; set export=true"),
    ],
)
def test_an_option_that_cannot_work_is_refused(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("logger=wandb", "logger.wandb.mode=offline", f"logger.wandb.{option}")


def test_a_missing_tensorboard_is_refused_with_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemend.logger.tensorboard_checks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tensorboard\]"'):
        check("logger=tensorboard")
    check("logger=csv")


def test_the_shipped_sweep_composes_as_an_agent_would_call_it() -> None:
    sweep = yaml.safe_load((conf_folder() / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert sweep["program"] == "sparsemend"
    assert sweep["metric"]["name"] == "repaired/perplexity/test"
    fixed = [line for line in sweep["command"] if "=" in line]
    ends = {
        key: parameter.get("values") or [parameter["min"], parameter["max"]]
        for key, parameter in sweep["parameters"].items()
    }
    for pick in (0, -1):
        drawn = [f"{key}={values[pick]}" for key, values in ends.items()]
        (cfg,) = compose_command([*fixed, *drawn, "logger.wandb.mode=offline"]).configs
        preflight.check(cfg)
        assert cfg.logger.wandb["_target_"].endswith("WandbTracker")
        assert cfg.method.learning_rate == ends["method.learning_rate"][pick]
