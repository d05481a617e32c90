"""A GPU gives what the CPU gives, up to the order of sums, and the same bits again after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
import torch
from support.command_runs import result_of, weights_of
from support.contracts import assert_same_bits
from support.gpu_runs import BLOCK_7B, DEVICE, Run, written
from support.interrupts import interrupted_after
from support.member_runs import FIT, LOSA, RECONSTRUCT, ROUNDS, TRAINED
from torch import Tensor

from sparsemend.sparse.histogram import kth_by_counting
from sparsemend.sparse.mask_file import load_masks
from sparsemend.sparse.selection import lowest_of_all, lowest_per_row

# An fp32 product differs by the order of its sums, 1e-6 of a score; only weights whose score lies
# that close to the threshold change sides.  SparseGPT hands such a change on to later columns, and
# every pruner to later blocks.
MASKS = {"wanda": 1e-3, "sparsegpt": 1e-2, "magnitude": 0.0}
PERPLEXITY = 1e-3  # relative, of a random model on few tokens


def differing(one: Path, other: Path) -> float:
    """The share of the weights that two runs decided otherwise."""
    masks = [load_masks(out / "model" / "masks.safetensors") for out in (one, other)]
    changed = sum(int((masks[0][name] != masks[1][name]).count_nonzero()) for name in masks[0])
    return changed / sum(keep.numel() for keep in masks[0].values())


@pytest.mark.parametrize("pruner", MASKS)
def test_a_pruner_chooses_as_on_the_cpu(pruner: str, run_small: Run) -> None:
    asked = (f"pruner={pruner}", "method=none", "export=true")
    there, here = (run_small(f"{pruner}_{on}", *asked, on=on) for on in ("gpu", "cpu"))
    share = differing(there, here)
    written("equality.csv", f"{pruner},masks that differ,{share:.2e}")
    assert share <= MASKS[pruner]
    for state in ("dense", "pruned"):
        perplexities = [
            result_of(out)["metrics"][state]["perplexity/test"] for out in (there, here)
        ]
        assert perplexities[0] == pytest.approx(perplexities[1], rel=PERPLEXITY)


@pytest.mark.parametrize("method", ["masked_lora", "lors", "perp"])
def test_a_fit_learns_as_on_the_cpu(method: str, run_small: Run) -> None:
    """From the same mask: that of magnitudes, which no sum decides."""
    asked = (f"method={method}", *FIT, "pruner=magnitude")
    there, here = (
        result_of(run_small(f"{method}_{on}", *asked, on=on))["repair"]["validation/loss"]
        for on in ("gpu", "cpu")
    )
    written("equality.csv", f"{method},validation loss,{abs(there / here - 1):.2e}")
    assert there == pytest.approx(here, rel=PERPLEXITY)


# with the kernel that is the default: gather
SEFT = ("method=seft", *FIT, *ROUNDS)
RESUMED = {
    **{name: (TRAINED[name], "checkpoints/last.ckpt") for name in ("masked_lora", "lors", "spp")},
    "masked_full rigl_momentum": (TRAINED["masked_full rigl_momentum"], "checkpoints/last.ckpt"),
    "seft": (SEFT, "checkpoints/last.ckpt"),
    "losa": (LOSA, "repair/*"),
    "reconstruct": (RECONSTRUCT, "repair/*"),
}


@pytest.mark.parametrize("row", RESUMED)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(row: str, run_small: Run) -> None:
    overrides, pattern = RESUMED[row]
    asked = (*overrides, "export=true")
    name = row.replace(" ", "_")
    whole = run_small(f"{name}_whole", *asked)
    with interrupted_after(pattern):
        parts = run_small(f"{name}_parts", *asked, code=130)
    run_small(f"{name}_parts", *asked, f"resume={parts}")
    assert_same_bits(weights_of(parts), weights_of(whole))


def test_selection_over_a_matrix_of_7b_is_the_cpus() -> None:
    shape = (BLOCK_7B.intermediate, BLOCK_7B.hidden)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scores = scores.bfloat16().float()  # with many ties
    there = scores.to(DEVICE)
    count = int(0.6 * scores.numel())
    assert torch.equal(lowest_of_all(there, count).cpu(), lowest_of_all(scores, count))
    each = int(0.6 * shape[1])
    assert torch.equal(lowest_per_row(there, each).cpu(), lowest_per_row(scores, each))


def test_figures_of_selection() -> None:
    """Seconds of each way to one threshold over a matrix; kthvalue is the one that is avoided."""
    scores = torch.randn(1, BLOCK_7B.intermediate * BLOCK_7B.hidden, device=DEVICE)
    count = int(0.6 * scores.numel())
    ways: dict[str, Callable[[], Tensor]] = {
        "counting": lambda: kth_by_counting(scores, count),
        "sort": lambda: scores.sort(dim=1).values[0, count - 1 : count],
        "kthvalue": lambda: scores.kthvalue(count, dim=1).values,
    }
    for name, select in ways.items():
        first = float(select())  # and warm
        started = perf_counter()
        assert float(select()) == first  # which waits for it
        seconds = perf_counter() - started
        written("selection.csv", f"{name},{scores.numel()},{seconds:.5f}")
