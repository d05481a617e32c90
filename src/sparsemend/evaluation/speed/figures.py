"""The figures of forms from their rounds: medians, gains over dense within a round, shares."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsemend.evaluation.speed.forms import DENSE
from sparsemend.evaluation.speed.parts import DecodeParts

log = logging.getLogger(__name__)


@dataclass
class TimedForm:
    """Seconds of one form, one entry per round, and peak bytes of a prefill with decoding.

    off: how far its logits are from the dense ones, relative to their norm.  parts: of decodings
    of their own.
    """

    off: float
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    parts: list[DecodeParts] = field(default_factory=list)
    peak: int = 0


def figures(timed: Mapping[str, TimedForm], tokens: Mapping[str, int]) -> dict[str, float]:
    """`speed/FORM/...` of every form, each logged in a line, and where its decoding goes.

    tokens: of a round's prefill and of its decode.
    """
    metrics: dict[str, float] = {}
    for form, measured in timed.items():
        line = []
        for part, count in tokens.items():
            seconds = getattr(measured, part)
            ratios = [
                base / elapsed
                for base, elapsed in zip(getattr(timed[DENSE], part), seconds, strict=True)
            ]
            rate, gain = count / statistics.median(seconds), statistics.median(ratios)
            metrics[f"speed/{form}/{part}"] = rate
            metrics[f"speed/{form}/{part}_gain"] = gain
            line.append(
                f"{part} {rate:,.0f} tokens/s, {gain:.2f} x dense "
                f"({min(ratios):.2f} - {max(ratios):.2f})"
            )
        metrics[f"speed/{form}/peak_bytes"] = measured.peak
        log.info("speed %-15s  %s  peak %.1f MiB", form, "  ".join(line), measured.peak / 2**20)
    for form, measured in timed.items():
        if measured.parts:
            log.info("speed %-15s  %s", form, _parts_line(measured, timed[DENSE]))
    return metrics


def _parts_line(measured: TimedForm, dense: TimedForm) -> str:
    """The shares of the decoding with the median of linears, and their gain over dense ones."""
    middle = sorted(measured.parts, key=lambda parts: parts.linears)[len(measured.parts) // 2]
    floor = statistics.median(parts.linears for parts in dense.parts)
    gain = f", linears {floor / middle.linears:.2f} x dense" if middle.linears else ""
    return f"{middle.line()}{gain}; logits off by {measured.off:.1e}"
