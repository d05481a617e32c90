"""One whole run of every member on the pretended device, with the model there and offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from support.command_runs import result_of, sparsemend_here, weights_of
from support.contracts import assert_same_bits
from support.interrupts import interrupted_after
from support.member_runs import (
    FIT,
    LOSA,
    NOTHING,
    PRUNERS,
    RECONSTRUCT,
    SCHEDULES,
    TRAINED,
    UNTRAINED,
)
from support.pretended_device import Seen
from support.pretended_hardware import PRETENDED

from sparsemend.blocks import precision
from sparsemend.config.locations import conf_folder
from sparsemend.sparse.mask_file import load_masks

pytestmark = pytest.mark.device

RunFar = Callable[..., Seen]
OFFLOAD = ("hardware.offload=false", "hardware.offload=true")
EVALUATIONS = {
    "block_error": ("evaluation=[perplexity,block_error]", "evaluation.block_error.windows=2"),
    "speed": (
        *("evaluation=[perplexity,speed]", "evaluation.speed.forms=[dense]"),
        *("evaluation.speed.prompt_tokens=8", "evaluation.speed.new_tokens=2"),
        *("evaluation.speed.rounds=1", "evaluation.speed.warmups=0"),
    ),
}
ELSEWHERE = {  # member: where this file or another has it
    ("pruner", "existing"): "test_a_pruned_checkpoint_is_taken_over",
    ("sparsity_schedule", "file"): "test_rates_of_another_run_are_read",
    ("evaluation", "perplexity"): "every run",
    ("evaluation", "zero_shot"): "test_tasks_of_the_embedded_model",
}


def members(group: str) -> set[str]:
    return {path.stem for path in (conf_folder() / group).glob("*.yaml")}


def names(*rows: Iterable[str]) -> set[str]:
    return {row.split()[0] for table in rows for row in table}


def test_every_member_has_a_run() -> None:
    """Beside those of ELSEWHERE."""
    tables = {
        "method": names(TRAINED, UNTRAINED),
        "pruner": names(PRUNERS),
        "sparsity_schedule": names(SCHEDULES),
        "evaluation": names(EVALUATIONS),
    }
    for group, rows in tables.items():
        assert rows | {name for other, name in ELSEWHERE if other == group} == members(group)


@pytest.mark.parametrize(
    ("row", "offload"), [(row, offload) for row in UNTRAINED for offload in OFFLOAD]
)
def test_a_method_that_does_not_train(
    row: str, offload: str, run_far: RunFar, tmp_path: Path
) -> None:
    run_far(tmp_path / "out", *UNTRAINED[row], offload)


STREAMED = {
    "dsnot": (*UNTRAINED["dsnot"], "hardware.states=file", *EVALUATIONS["block_error"]),
    "reconstruct": (*RECONSTRUCT, "method.targets=dense_stream", "hardware.states=host"),
    "sparsegpt": (*NOTHING, "pruner=sparsegpt", "statistics=dense", "export_dtype=bfloat16"),
}


@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("row", STREAMED)
def test_a_model_whose_blocks_lie_in_files(
    row: str, offload: str, run_far: RunFar, tmp_path: Path
) -> None:
    run_far(tmp_path / "out", *STREAMED[row], offload, "hardware.stream=true")


# what a checkpoint holds differs between these; losa and reconstruct keep what they have finished
RESUMED = {
    name: (TRAINED[name], "checkpoints/last.ckpt")
    for name in (
        *("lora", "lora_prune", "lors", "losa carried", "masked_full muon", "masked_full set"),
        *("masked_full rigl_momentum", "masked_lora", "masked_lora distilled", "perp", "seft"),
        *("spiel", "spiel moments", "spp"),
    )
} | {"losa": (LOSA, "repair/*"), "reconstruct": (RECONSTRUCT, "repair/*")}
ONCE = [
    (row, offload)
    for row in TRAINED
    for offload in OFFLOAD
    if offload == OFFLOAD[1] or row not in RESUMED
]


@pytest.mark.parametrize(("row", "offload"), ONCE)
def test_a_trained_method(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "out", *TRAINED[row], offload)


@pytest.mark.parametrize("row", RESUMED)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    row: str, run_far: RunFar, tmp_path: Path
) -> None:
    overrides, pattern = RESUMED[row]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_far(whole, *overrides)
    with interrupted_after(pattern):
        run_far(parts, *overrides, code=130)
    assert result_of(parts)["status"] == "interrupted"
    run_far(parts, *overrides, f"resume={parts}")
    assert_same_bits(weights_of(parts), weights_of(whole))


@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("row", PRUNERS)
def test_a_pruner(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "far", *NOTHING, *PRUNERS[row], offload)
    run_far(tmp_path / "near", *NOTHING, *PRUNERS[row], NEAR)
    assert_same_masks(tmp_path)


NEAR = "hardware._target_=sparsemend.hardware.Hardware"


def assert_same_masks(folder: Path) -> None:
    """Values are the CPU's here, so that selection alone could differ."""
    far, near = (
        load_masks(folder / part / "model" / "masks.safetensors") for part in ("far", "near")
    )
    assert_same_bits(far, near)


@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("row", SCHEDULES)
def test_a_schedule(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    pruned = ("pruner=magnitude", "rounding=exact_budget", *NOTHING)
    run_far(tmp_path / "far", *pruned, *SCHEDULES[row], offload)
    run_far(tmp_path / "near", *pruned, *SCHEDULES[row], NEAR)
    assert_same_masks(tmp_path)


def test_rates_of_another_run_are_read(run_far: RunFar, tmp_path: Path) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text(yaml.safe_dump({"0": 0.5, "1": 0.7}))
    schedule = ("sparsity_schedule=file", f"sparsity_schedule.path={rates}")
    run_far(tmp_path / "out", *schedule, *NOTHING)


def test_a_pruned_checkpoint_is_taken_over(run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "one", *NOTHING)
    existing = ("pruner=existing", f"model.path={tmp_path / 'one' / 'model'}")
    run_far(tmp_path / "two", *existing, "method=masked_lora", *FIT)


WITHOUT_FP64 = {
    **{name: TRAINED[name] for name in ("masked_lora", "masked_lora distilled", "seft", "losa")},
    "dsnot obs": UNTRAINED["dsnot obs"],
    **{name: (*SCHEDULES[name], *NOTHING) for name in ("owl", "dlp", "lamp", "global", "rmi")},
    "block_error": (*EVALUATIONS["block_error"], *NOTHING),
}


@pytest.mark.parametrize("row", WITHOUT_FP64)
def test_a_device_without_fp64_is_asked_for_none(
    row: str, run_far: RunFar, far: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "WITHOUT_FP64", {"far"})
    far.has_fp64 = False
    run_far(tmp_path / "out", *WITHOUT_FP64[row])


@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("row", EVALUATIONS)
def test_an_evaluation(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "out", *EVALUATIONS[row], *NOTHING, offload)


@pytest.mark.parametrize("offload", OFFLOAD)
def test_tasks_of_the_embedded_model(offload: str, far: Seen, tmp_path: Path) -> None:
    """Which has a tokenizer."""
    zero_shot = (
        *("evaluation=[perplexity,zero_shot]", "evaluation.zero_shot.limit=2"),
        "evaluation.zero_shot.tasks={docs_summary: 0}",
    )
    lines = [PRETENDED, "debug=fast", *NOTHING, *zero_shot, offload, f"hydra.run.dir={tmp_path}"]
    done = sparsemend_here(lines, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 <= result_of(tmp_path)["metrics"]["pruned"]["zero_shot/docs_summary"] <= 1
