"""A picture of how supports moved while a method trained, from the result.json of its run.

    sparsemend-evolution RUN_FOLDER        writes RUN_FOLDER/mask_evolution.png

The upper chart shows, per round and summed over linears, the share of deltas (or kept weights)
asked to move and moved, reactivated positions, and weights pruned for them.  The lower chart shows
the share of every linear's starting support that is still in place.  Where rounds measured their
loss (method.round_loss_windows) a chart between them shows what moving and pruning changed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemend.names import RESULT
from sparsemend.result.folder import load_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "mask_evolution.png"
COUNTS = {  # key of a round: legend
    "nominal": "asked to move",
    "moved": "moved",
    "reactivated": "grown on pruned positions",
    "pruned": "pruned for them",
    "dead": "dead deltas",
}
EFFECTS = {  # legend: the losses of a round whose difference it is
    "the move": ("loss_before", "loss_moved"),
    "the pruning": ("loss_moved", "loss_settled"),
}
MOMENTS = {  # of a round that measured its loss: what a table calls it
    "loss_before": "before",
    "loss_moved": "after the move",
    "loss_settled": "after pruning",
}
LABELLED = 60  # linears that can be named beside the lower picture


def read_evolution(folder: Path) -> dict[str, Any]:
    """`repair.evolution` of a run; raises FileNotFoundError or ValueError where it has none."""
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} has no {RESULT}; give a run folder")
    result = load_result(folder / RESULT)
    evolution: dict[str, Any] | None = result.repair.diagnostics.get("evolution")
    if not evolution or not evolution["rounds"]:
        method = result.config["method"].get("_target_", "none").rsplit(".", 1)[-1]
        raise ValueError(
            f"no support moved in the run in {folder} (method {method}, status "
            f"{result.status}); methods that move supports: seft, spiel, masked_full with "
            "mask_update"
        )
    return evolution


def shares(evolution: Mapping[str, Any]) -> dict[str, list[float]]:
    """Legend -> share per round, of all deltas, or of all kept weights where there are none."""
    whole = sum(evolution.get("deltas", evolution["kept"]))
    rounds = evolution["rounds"]
    return {
        legend: [sum(record[key]) / whole for record in rounds]
        for key, legend in COUNTS.items()
        if all(key in record for record in rounds)
    }


def remaining(evolution: Mapping[str, Any]) -> list[list[float]] | None:
    """Per linear and round, the share of the starting support in place; None if not recorded."""
    rounds = evolution["rounds"]
    if any("overlap" not in record for record in rounds):
        return None
    return [
        [record["overlap"][index] / max(1, kept) for record in rounds]
        for index, kept in enumerate(evolution["kept"])
    ]


def effects(evolution: Mapping[str, Any]) -> dict[str, list[float]]:
    """Legend -> change of the loss per round, in nats; empty where rounds did not measure it."""
    rounds = evolution["rounds"]
    return {
        legend: [record[after] - record[before] for record in rounds]
        for legend, (before, after) in EFFECTS.items()
        if all(before in record and after in record for record in rounds)
    }


def mean_rounds(diagnostics: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[float]]]:
    """(step, mean loss over runs at MOMENTS) of every round; empty where none was measured.

    diagnostics: `repair` of runs of one plan, so that their rounds are at the same steps.
    """
    each = [repair.get("evolution", {}).get("rounds", []) for repair in diagnostics]
    return [
        (same[0]["step"], [statistics.fmean(one[m] for one in same) for m in MOMENTS])
        for same in zip(*each, strict=False)  # of a run that was cut short, as far as it came
        if all(m in one for one in same for m in MOMENTS)
    ]


def draw(evolution: Mapping[str, Any], path: Path) -> None:
    """Write the picture (PNG)."""
    from matplotlib.figure import Figure

    steps, table = [record["step"] for record in evolution["rounds"]], remaining(evolution)
    linears: Sequence[str] = evolution["linears"]
    heights = [3.5]
    if changes := effects(evolution):
        heights.append(2.5)
    if table is not None:
        heights.append(0.16 * min(len(linears), LABELLED) + 1)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    whole = "deltas" if "deltas" in evolution else "kept weights"
    _lines(axes[0], steps, shares(evolution))
    axes[0].set(ylabel=f"share of {whole}", ylim=(0, None))
    if changes:
        _lines(axes[1], steps, changes)
        axes[1].axhline(0, color="#777777", lw=0.8)
        axes[1].set(ylabel="change of the loss")
    if table is not None:
        image = axes[-1].imshow(table, aspect="auto", interpolation="none", vmax=1.0)
        axes[-1].set_xticks(range(len(steps)), [str(step) for step in steps])
        axes[-1].set(xlabel="optimizer step", title="starting support still in place")
        if len(linears) <= LABELLED:
            axes[-1].set_yticks(range(len(linears)), linears, fontsize=6)
        figure.colorbar(image, ax=axes[-1])
    figure.savefig(path, dpi=120)


def _lines(axes: Axes, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
    for legend, line in values.items():
        axes.plot(steps, line, marker=".", label=legend)
    axes.set_xlabel("optimizer step")
    axes.legend()
