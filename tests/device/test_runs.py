"""One whole run of every member on the pretended device, with the model there and offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from _pytest.mark import ParameterSet
from support.command_runs import result_of, weights_of
from support.contracts import assert_same_bits
from support.pretended_device import Seen

from sparsemend.config.locations import conf_folder
from sparsemend.sparse.mask_file import load_masks

pytestmark = pytest.mark.device

RunFar = Callable[..., Seen]
OFFLOAD = ("hardware.offload=false", "hardware.offload=true")
FIT = (  # four steps of two micro-batches, validated and saved halfway
    "method.max_steps=4",
    "method.validate_every=2",
    "method.checkpoint_every=2",
    "method.windows_per_step=2",
    "hardware.micro_batch=1",
)
# a CSR matrix cannot be pretended: kernels gather and sparse of these two are left out
EVOLVING = (
    *FIT,
    "method.kernel=scatter",
    "method.update_interval=3",
    "method.accumulation_steps=1",
)
LOSA = ("method=losa", "method.rounds=2", "method.similarity_samples=4", *FIT)
TRAINED = {
    "lora": ("method=lora", *FIT),
    "lora_prune": ("method=lora_prune", *FIT),
    "lors": ("method=lors", *FIT),
    "lors derived": ("method=lors", "method.mask=derived", *FIT),
    "lors tiled": ("method=lors", "method.grad_mode=exact_tiled", "method.tile_rows=5", *FIT),
    "losa": LOSA,
    "losa carried": (*LOSA, "method.optimizer_state=carried", "method.dropout=0"),
    "masked_full": ("method=masked_full", *FIT),
    "masked_full muon": ("method=masked_full", "method.scope=all", "method.optimizer=muon", *FIT),
    "masked_full set": (
        *("method=masked_full", "method.mask_update=set", "method.update_interval=1"),
        *("method.update_until=1.0", *FIT),
    ),
    "masked_full rigl_momentum": (
        *("method=masked_full", "method.mask_update=rigl_momentum", "method.update_interval=3"),
        *("method.update_until=1.0", *FIT),
    ),
    "masked_lora": ("method=masked_lora", *FIT),
    "masked_lora two_gemm": ("method=masked_lora", "method.form=two_gemm", *FIT),
    "masked_lora checkpointed": (
        *("method=masked_lora", "method.activation_checkpointing=true", *FIT),
    ),
    "masked_lora distilled": (
        *("method=masked_lora", "method.distill.weight=0.5", "method.distill.hidden_weight=1"),
        *FIT,
    ),
    "perp": ("method=perp", *FIT),
    "perp released": ("method=perp", "method.trained=[biases,norms,lm_head,mask_lora]", *FIT),
    "seft": ("method=seft", *EVOLVING),
    "spiel": ("method=spiel", *EVOLVING),
    "spiel moments": ("method=spiel", "method.selection=moments", *EVOLVING),
    "spp": ("method=spp", *FIT),
    "spp plain": ("method=spp", "method.form=plain", *FIT),
}
RECONSTRUCT = ("method=reconstruct", "method.epochs=2", "method.windows_per_step=2")
UNTRAINED = {
    "none": ("method=none",),
    "dsnot": ("method=dsnot",),
    "dsnot faithful": ("method=dsnot", "method.mode=faithful", "method.same_sign=true"),
    "dsnot obs": ("method=dsnot", "pruner=sparsegpt", "method.sparsegpt_weights=obs"),
    "reconstruct": RECONSTRUCT,
    "reconstruct low rank": (
        *(*RECONSTRUCT, "method.form=masked_lora", "method.targets=dense_stream"),
        *("method.biases=true", "method.norms=true"),
    ),
}
NOTHING = ("method=none",)
PRUNERS = {
    "wanda": (),
    "wanda variant": ("pruner.variant=true",),
    "wanda 2:4": ("pattern=2:4", "sparsity=0.5"),
    "wanda 16:32": ("pattern=16:32", "sparsity=0.5", "pattern_tail=reference"),
    "wanda exact": ("rounding=exact_budget",),
    "wanda dense": ("statistics=dense",),
    "wanda sequential": ("true_sequential=true",),
    "magnitude": ("pruner=magnitude",),
    "magnitude row": ("pruner=magnitude", "pruner.group=row", "rounding=exact_budget"),
    "ria": ("pruner=ria",),
    "sparsegpt": ("pruner=sparsegpt",),
    "sparsegpt 2:4": ("pruner=sparsegpt", "pattern=2:4", "sparsity=0.5"),
    "admm": ("pruner=admm",),
    "admm row": ("pruner=admm", "pruner.group=row"),
    "none": ("pruner=none", "sparsity=0"),
}
SCHEDULES = {
    "uniform": (),
    "alphapruning": ("sparsity_schedule=alphapruning", "sparsity_schedule.metric=alpha_peak"),
    "atp": ("sparsity_schedule=atp", "sparsity_schedule.common_difference=0.05"),
    "dlp": ("sparsity_schedule=dlp",),
    "er": ("sparsity_schedule=er",),
    "er_plus": ("sparsity_schedule=er_plus",),
    "global": ("sparsity_schedule=global", "sparsity_schedule.score=wanda"),
    "lamp": ("sparsity_schedule=lamp",),
    "owl": ("sparsity_schedule=owl",),
    "rmi": ("sparsity_schedule=rmi", "sparsity_schedule.similarity_samples=4"),
}
# of the embedded model where a tokenizer is read
EMBEDDED = ("model=tiny", "data=python_docs", "debug=fast", "export=false")
EVALUATIONS = {
    "block_error": ("evaluation=[perplexity,block_error]", "evaluation.block_error.windows=2"),
    "speed": (
        *("evaluation=[perplexity,speed]", "evaluation.speed.forms=[dense]"),
        *("evaluation.speed.prompt_tokens=8", "evaluation.speed.new_tokens=2"),
        *("evaluation.speed.rounds=1", "evaluation.speed.warmups=0"),
    ),
    "zero_shot": (
        *("evaluation=[perplexity,zero_shot]", "evaluation.zero_shot.limit=2"),
        "evaluation.zero_shot.tasks={docs_summary: 0}",
    ),
}
ELSEWHERE = {  # member: where this file or another has it
    ("pruner", "existing"): "test_a_pruned_checkpoint_is_taken_over",
    ("sparsity_schedule", "file"): "test_rates_of_another_run_are_read",
    ("evaluation", "perplexity"): "every run",
}


ALSO_SLOW = {"none", "masked_lora"}  # for the tier that runs more often


def marked(row: str, offload: str) -> ParameterSet:
    also = pytest.mark.slow if offload == OFFLOAD[1] and row in ALSO_SLOW else ()
    return pytest.param(row, offload, marks=also)


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
    ("row", "offload"), [marked(row, offload) for row in UNTRAINED for offload in OFFLOAD]
)
def test_a_method_that_does_not_train(
    row: str, offload: str, run_far: RunFar, tmp_path: Path
) -> None:
    run_far(tmp_path / "out", *UNTRAINED[row], offload)


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
    marked(row, offload)
    for row in TRAINED
    for offload in OFFLOAD
    if offload == OFFLOAD[1] or row not in RESUMED
]


@pytest.mark.parametrize(("row", "offload"), ONCE)
def test_a_trained_method(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "out", *TRAINED[row], offload)


@pytest.mark.parametrize("row", RESUMED)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    row: str,
    run_far: RunFar,
    interrupting: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides, pattern = RESUMED[row]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_far(whole, *overrides)
    interrupting(pattern)
    run_far(parts, *overrides, code=130)
    monkeypatch.undo()
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


@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("row", EVALUATIONS)
def test_an_evaluation(row: str, offload: str, run_far: RunFar, tmp_path: Path) -> None:
    run_far(tmp_path / "out", *EVALUATIONS[row], *NOTHING, offload)
