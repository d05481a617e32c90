"""Every method takes its steps on a model of 7B blocks, and needs the memory that is foretold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.command_runs import result_of
from support.configs import compose
from support.gpu_runs import BLOCK_7B, GPU, HARDWARE, Run, written
from support.member_runs import TRAINED, UNTRAINED

# these want no fp32 gradient of a bf16 weight
IN_BF16 = ("method.precision=bf16-true",) if GPU else ()
ROWS = {
    **{name: overrides for name, overrides in TRAINED.items() if " " not in name},
    "masked_full": (*TRAINED["masked_full"], *IN_BF16),
    **{
        f"{name} {kernel}": (*TRAINED[name], f"method.kernel={kernel}")
        for name in ("seft", "spiel")
        for kernel in ("gather", "sparse")
    },
    **UNTRAINED,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_method_on_blocks_of_7b(row: str, run_7b_block: Run) -> None:
    result = result_of(run_7b_block(row.replace(" ", "_"), *ROWS[row]))
    perplexity = result["metrics"]["repaired"]["perplexity/test"]
    assert result["status"] == "finished"
    assert math.isfinite(perplexity)
    for stage, cost in result["cost"].items():
        gib, scope = cost["peak_bytes"] / 2**30, result["peak_scope"]
        written("stages.csv", f"{row},{stage},{cost['seconds']:.2f},{gib:.3f},{scope}")


@pytest.mark.skipif(not GPU, reason="the peaks are those of CUDA's allocator")
@pytest.mark.parametrize("row", ["dsnot", "lors", "masked_lora"])
def test_the_peak_of_a_stage_is_within_15_percent_of_its_estimate(
    row: str, run_7b_block: Run, tmp_path: Path
) -> None:
    """An estimate counts tensors; the allocator's rounding and workspaces come on top."""
    doctor = pytest.importorskip("sparsemend.doctor.estimate", reason="there is no doctor yet")
    out = run_7b_block(f"{row}_estimated", *ROWS[row])
    overrides = [*BLOCK_7B.overrides(out.parent), *HARDWARE["gpu"], *ROWS[row]]
    peaks = doctor.estimate(compose("run", overrides)).peaks
    costs = result_of(out)["cost"]
    for stage in ("prune", "repair"):
        measured, estimated = costs[stage]["peak_bytes"], peaks[stage, "device"].bytes
        written("peaks.csv", f"{row},{stage},{measured},{estimated}")
        assert measured == pytest.approx(estimated, rel=0.15), (stage, peaks[stage, "device"].line)
