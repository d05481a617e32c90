"""Seconds of a whole run, carried on from those of a block or two."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig
from support.configs import compose

from sparsemend.doctor import probe
from sparsemend.doctor.probe import Amount, Times

STEP, WINDOW, MEASURED, BLOCK = 0.7, 0.3, 0.11, 5.0  # seconds per block, whatever the machine
DEPTH = 24


def exact_run(cfg: DictConfig, amount: Amount) -> tuple[dict[str, float], int]:
    """The times of a machine on which every block takes the same."""
    blocks = amount.blocks
    return {
        "prune": 2 + blocks * (BLOCK + WINDOW * amount.windows),
        "evaluate: dense": 1 + amount.tested * (0.05 + blocks * MEASURED),
        "repair: start": 3 + blocks * BLOCK,
        "repair: fit": 4 + amount.steps * (0.2 + blocks * STEP),
        "export": 0.5 + blocks * 0.1,
    }, DEPTH


def test_linear_times_are_carried_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "timed_run", exact_run)
    lines = ["data.calibration_samples=100", "method.max_steps=500", "method.validate_every=250"]
    lines += ["evaluation.perplexity.windows=166", "method.validation_windows=10"]
    seconds = probe.probe_seconds(compose("run", lines))
    whole, _ = exact_run(compose("run"), Amount(DEPTH, 100, 500, 166))
    whole["repair: fit"] += 2 * 10 * (0.05 + DEPTH * MEASURED)  # two validations
    assert seconds == pytest.approx(whole)


def test_a_method_of_rounds_has_no_seconds_of_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "timed_run", exact_run)
    seconds = probe.probe_seconds(
        compose("run", ["method=seft", "evaluation.perplexity.windows=8"])
    )
    assert "repair: fit" not in seconds
    assert "prune" in seconds


def test_noise_never_makes_a_stage_faster_than_its_first_run() -> None:
    times = Times(base=2.0, deeper=1.9, longer=1.8)
    assert times.calibrating(80, 32) == times.repeating(80, 32) == 2.0


def test_noise_of_a_tenth_of_a_second_hardly_shows_in_short_repetitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A window and a block of a millisecond; every other run takes a tenth of a second more."""
    runs: list[Amount] = []

    def noisy_run(cfg: DictConfig, amount: Amount) -> tuple[dict[str, float], int]:
        runs.append(amount)
        return {"prune": 1 + 0.1 * (len(runs) % 2) + 1e-3 * amount.blocks * amount.windows}, DEPTH

    monkeypatch.setattr(probe, "timed_run", noisy_run)
    lines = ["data.calibration_samples=4096", "method=none", "evaluation.perplexity.windows=8"]
    seconds = probe.probe_seconds(compose("run", lines))
    assert seconds["prune"] == pytest.approx(1 + 1e-3 * DEPTH * 4096, rel=0.01)
    assert max(run.windows for run in runs) == 4096


@pytest.mark.slow
def test_a_timed_run_has_the_stages_of_a_dry_one() -> None:
    cfg = compose("run", ["method=masked_lora", "model.context_length=16", "cache=off"])
    seconds, depth = probe.timed_run(cfg, Amount(blocks=1, windows=4, steps=1, tested=2))
    fit = ["repair: start", "repair: fit"]
    measured = ["evaluate: dense", "evaluate: pruned", "evaluate: repaired"]
    assert sorted(seconds) == sorted([*measured, "prune", *fit, "export"])
    assert all(second > 0 for second in seconds.values())
    assert depth == 6
