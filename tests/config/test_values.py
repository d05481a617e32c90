"""A composed config as plain data, and the keys of override lines."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.config.values import config_hash, differences, override_key, plain


@pytest.mark.parametrize("line", ["seed=1", "+seed=1", "++seed=1", "~seed", "seed=a=b"])
def test_every_spelling_of_an_override_has_its_key(line: str) -> None:
    assert override_key(line) == "seed"


def test_how_a_step_is_split_is_not_hashed_but_its_windows_are() -> None:
    def hash_of(windows: int, micro_batch: int | None) -> str:
        hardware = {"devices": 1, "micro_batch": micro_batch}
        return config_hash({"method": {"windows_per_step": windows}, "hardware": hardware})

    assert hash_of(8, 8) == hash_of(8, 1) == hash_of(8, None)
    assert hash_of(8, 8) != hash_of(16, 8)


@pytest.mark.parametrize("preset", ["gpu_24gb", "gpu_80gb"])
def test_a_card_s_preset_gives_the_hash_of_any_gpu(preset: str) -> None:
    hashes = {config_hash(plain(compose("run", [f"hardware={h}"]))) for h in ("gpu", preset)}
    assert len(hashes) == 1
    assert hashes != {config_hash(plain(compose("run")))}


def test_another_micro_batch_is_no_difference() -> None:
    stored = {"hardware": {"devices": 1, "micro_batch": 8}}
    assert differences(stored, {"hardware": {"devices": 1}}) == []
    assert differences(stored, {"hardware": {"devices": 2}}) == [
        "hardware.devices: 1 there, 2 here"
    ]
