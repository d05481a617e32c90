"""A GPU that a machine shows no sign of is refused without torch."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.preflight import device


def without_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.setattr(device, "SIGNS", ("/absent/driver",))


def test_a_gpu_where_no_driver_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_signs(monkeypatch)
    device.check_device(compose("run", []))
    with pytest.raises(ValueError, match=r"no GPU driver .* are missing\); use hardware=cpu"):
        device.check_device(compose("run", ["hardware=gpu"]))


def test_a_sign_of_a_driver_leaves_the_rest_to_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    without_signs(monkeypatch)
    monkeypatch.setattr(device, "SIGNS", (str(tmp_path),))
    device.check_device(compose("run", ["hardware=gpu"]))


def test_a_machine_that_is_not_linux_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    without_signs(monkeypatch)
    monkeypatch.setattr(device.sys, "platform", "win32")
    device.check_device(compose("run", ["hardware=gpu"]))


def test_the_gpu_of_a_mac_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    without_signs(monkeypatch)
    cfg = compose("run", ["hardware=mps"])
    with pytest.raises(ValueError, match="this system is linux; use hardware=cpu"):
        device.check_device(cfg)
    monkeypatch.setattr(device.sys, "platform", "darwin")
    device.check_device(cfg)
