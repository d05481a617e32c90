"""What every member of the group promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import random_model
from support.schedules import schedule_of
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.config.locations import conf_folder
from sparsemend.sparse.pattern import Pattern

EVERY = sorted(path.stem for path in (conf_folder() / "sparsity_schedule").glob("*.yaml"))


def options(name: str, folder: Path) -> dict[str, Any]:
    """What a member cannot do without on three blocks and eight windows."""
    needed: dict[str, dict[str, Any]] = {
        "atp": {"common_difference": 0.1},
        "rmi": {"similarity_samples": 4},
    }
    if name != "file":
        return needed.get(name, {})
    path = folder / "rates.yaml"
    path.write_text("0: 0.5\n1: 0.6\n2: 0.7\n")
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("family", "dtype"),
    slow_but_for(
        [
            ("llama", torch.float32),
            ("opt", torch.bfloat16),
            ("gpt_neox", torch.float32),
            ("gemma2", torch.bfloat16),
        ],
        [("llama", torch.float32), ("opt", torch.bfloat16)],
    ),
)
@pytest.mark.parametrize("name", EVERY)
def test_every_linear_gets_a_rate_the_mean_is_the_target_and_the_model_is_left_alone(
    name: str, family: str, dtype: torch.dtype, tokens: Tensor, tmp_path: Path
) -> None:
    model = random_model(family).to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    schedule = schedule_of(name, **options(name, tmp_path))
    calibration = Calibration(tokens.split(2) if schedule.needs_calibration else ())
    found = schedule.allocate(model, calibration, 0.6, Pattern())
    assert list(found) == list(prunable_linears(model))
    total = sum(found.sizes.values())
    # pooled thresholds count whole weights, half a weight from the target at most
    assert abs(found.mean - 0.6) <= 1e-9 + 0.5 / total
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", EVERY)
def test_rates_that_vary_contradict_a_fixed_pattern(
    name: str, tokens: Tensor, tmp_path: Path
) -> None:
    schedule = schedule_of(name, **options(name, tmp_path))
    calibration, pattern = Calibration([tokens]), Pattern.parse("2:4")
    if schedule.uniform:
        assert set(
            schedule.allocate(random_model("llama"), calibration, 0.5, pattern).values()
        ) == {0.5}
        return
    words = rf"rates by {schedule.varies_by} with .*2:4 are undefined"
    with pytest.raises(ValueError, match=words):
        schedule.allocate(random_model("llama"), calibration, 0.5, pattern)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("er", "er_plus")])
def test_a_mixed_pattern_gets_whole_n_of_the_mean(
    name: str, tokens: Tensor, tmp_path: Path
) -> None:
    pattern, model = Pattern.parse("mixed:10"), random_model("llama")
    schedule = schedule_of(name, **options(name, tmp_path))
    if hasattr(schedule, "granularity"):
        schedule.granularity = "block"
    found = schedule.allocate(model, Calibration(tokens.split(2)), 0.6, pattern)
    kept = [pattern.at(rate).kept for rate in found.values()]
    assert sum(kept) / len(kept) == pytest.approx(4, abs=1e-9)
