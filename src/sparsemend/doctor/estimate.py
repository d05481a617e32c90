"""The peaks and files of a whole run, carried on from dry runs of a few blocks and windows."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from sparsemend.config.flags import says
from sparsemend.doctor.dry_run import PrunedShapes, dry_run
from sparsemend.doctor.peaks import FITTING, HOST, Extent, Measured, Peak, by_stage, carry
from sparsemend.run.debug import cut_short

FEW, MORE = 2, 4  # decoder blocks of two dry runs
WINDOWS = 4  # calibration windows of a dry run; twice as many of the third


@dataclass(frozen=True)
class Estimate:
    """(stage, device) -> peak, and the bytes of the files of tensors that a run writes.

    device: `host` or `device`.
    """

    peaks: dict[tuple[str, str], Peak]
    files: dict[str, int]
    blocks: int

    @property
    def disk_bytes(self) -> int:
        return sum(self.files.values())


def estimate(cfg: DictConfig, *, only: str | None = None) -> Estimate:
    """Dry-run `cfg` with few blocks and windows; raises what the run itself would raise.

    Of a debug run the blocks are those that it keeps.  Of processes that train on the host each is
    taken to hold what rank 0 holds.

    only: the stage that is of interest: what comes after it is left out, and measurements where it
    is none.
    """
    until = None if only is None else only.partition(": ")[0] if "repair" in only[:7] else only
    if only is not None and not only.startswith("evaluate"):
        cfg = cfg.copy()
        cfg.evaluation = {}
    cfg = cut_short(cfg)
    pruned: PrunedShapes = {}
    samples = int(cfg.data.calibration_samples)
    least = least_windows(cfg)
    windows = samples if samples <= 2 * least else least
    base = dry_run(cfg, Extent(FEW, windows), pruned, until=until)
    depth = base.depth if cfg.get("debug") is None else min(base.depth, cfg.debug.blocks)
    whole = Extent(depth, samples)
    others: list[Measured] = []
    if depth > FEW:
        more = min(MORE, depth)
        others.append(dry_run(cfg, Extent(more, windows), pruned, until=until))
    if windows < samples:
        # a method that reads no calibration windows does not depend on their number
        reads = says(cfg.method, "needs_calibration")
        last = until if reads or until == "load" else "prune"
        others.append(dry_run(cfg, Extent(FEW, 2 * windows), pruned, until=last))
    moments, files = carry(base, others, whole)
    return Estimate(_with_all_ranks(by_stage(moments), cfg), files, depth)


def _with_all_ranks(
    peaks: dict[tuple[str, str], Peak], cfg: DictConfig
) -> dict[tuple[str, str], Peak]:
    """The peaks of a machine whose ranks train on the host."""
    ranks, fit = int(cfg.hardware.get("devices", 1)), (FITTING, HOST)
    if cfg.hardware.accelerator == "gpu" or fit not in peaks:
        return peaks
    return peaks | {fit: Peak(ranks * peaks[fit].bytes, peaks[fit].line)}


def least_windows(cfg: DictConfig) -> int:
    """Calibration windows that the stages can work with: blocks that train want batches of them."""
    if not says(cfg.method, "trains_blocks"):
        return WINDOWS
    held_out = float(cfg.method.get("held_out", 0.0))
    return 2 * max(WINDOWS, round(int(cfg.method.windows_per_step) / (1 - held_out) + 1))
