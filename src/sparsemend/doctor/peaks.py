"""Peaks of a run's moments, measured with few blocks and carried on to all of them (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Moment:
    """A stage, a device, and the line of this package that holds the bytes, `path:line`."""

    stage: str
    device: str
    line: str


@dataclass(frozen=True)
class Peak:
    """The largest number of bytes of a stage on a device, and the line that sets it."""

    bytes: int
    line: str


@dataclass(frozen=True)
class Extent:
    """What a run is cut to, and what it is carried on to: decoder blocks, calibration windows."""

    blocks: int
    windows: int


@dataclass(frozen=True)
class Measured:
    """The bytes of every moment of one run, and of every file, at an extent.

    depth: the decoder blocks of the whole model.
    """

    extent: Extent
    depth: int
    moments: Mapping[Moment, int]
    files: Mapping[str, int]


def carry(
    base: Measured, others: Sequence[Measured], whole: Extent
) -> tuple[dict[Moment, int], dict[str, int]]:
    """The bytes of every moment and file at the extent of the whole run.

    others: runs that differ from `base` in one number each, along which bytes are linear, and with
    which they never fall: what one run happens to hold less does not count.  A moment that one of
    two runs lacks keeps its bytes.
    """
    return (
        _carry(base.moments, [(o.moments, _steps(base.extent, o.extent, whole)) for o in others]),
        _carry(base.files, [(o.files, _steps(base.extent, o.extent, whole)) for o in others]),
    )


def _steps(base: Extent, other: Extent, whole: Extent) -> float:
    """How many times the difference of two runs lies between the first and the whole."""
    if other.blocks != base.blocks:
        return (whole.blocks - base.blocks) / (other.blocks - base.blocks)
    return (whole.windows - base.windows) / (other.windows - base.windows)


def _carry(
    base: Mapping[Name, int], others: Sequence[tuple[Mapping[Name, int], float]]
) -> dict[Name, int]:
    sizes = dict(base)
    for other, _ in others:
        sizes |= {key: size for key, size in other.items() if key not in sizes}
    whole = {key: float(size) for key, size in sizes.items()}
    for other, steps in others:
        for key, size in other.items():
            whole[key] += steps * max(0, size - base.get(key, size))
    return {key: round(size) for key, size in whole.items()}


# of a method that trains, what comes before its fit
REPAIR, START, FITTING, FOLD = "repair", "repair: start", "repair: fit", "repair: fold"
STAGE_ORDER = (
    *("load", "evaluate: dense", "prune", "evaluate: pruned", REPAIR, START, FITTING, FOLD),
    *("evaluate: repaired", "export"),
)
HOST, DEVICE = "host", "device"


def by_stage(moments: Mapping[Moment, int]) -> dict[tuple[str, str], Peak]:
    """(stage, HOST or DEVICE) -> its peak, in the order of a run."""
    fits = any(moment.stage == FITTING for moment in moments)
    peaks: dict[tuple[str, str], Peak] = {}
    for moment, size in moments.items():
        stage = START if fits and moment.stage == REPAIR else moment.stage
        key = stage, HOST if moment.device == "cpu" else DEVICE
        if stage in STAGE_ORDER and (key not in peaks or size > peaks[key].bytes):
            peaks[key] = Peak(size, moment.line)
    return {key: peaks[key] for key in sorted(peaks, key=lambda key: STAGE_ORDER.index(key[0]))}
