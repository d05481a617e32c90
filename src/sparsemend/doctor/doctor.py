"""One examination, top to bottom: what is there, what the run needs, what would lower it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from omegaconf import DictConfig

from sparsemend.doctor.capacity import find_capacity
from sparsemend.doctor.disk import disk_finding
from sparsemend.doctor.peaks import DEVICE
from sparsemend.doctor.remedies import choices
from sparsemend.doctor.report import Relief, Report
from sparsemend.doctor.surroundings import NoShape, examine_surroundings, shapes_are_there
from sparsemend.doctor.verdict import Capacity, Finding, Need, Verdict

PATIENCE = 45.0  # seconds after which no further remedy is tried


def examine(
    cfg: DictConfig,
    command: Sequence[str],
    folder: Path,
    *,
    device_gb: float | None = None,
    host_gb: float | None = None,
) -> Report:
    """Examine the run of a composed config, whose run folder would lie in `folder`.

    device_gb, host_gb: free memory to take for granted, for a machine that is not this one.
    """
    started = monotonic()
    capacity = find_capacity(cfg, folder, device_gb=device_gb, host_gb=host_gb)
    findings = examine_surroundings(cfg, pretended=device_gb is not None)
    try:
        shapes_are_there(cfg)
        from sparsemend.doctor.estimate import estimate

        found = estimate(cfg)
    except NoShape as error:
        findings.append(Finding("memory", Verdict.UNKNOWN, str(error)))
        return Report(command, capacity, [], findings, {})
    except Exception as error:  # what the run itself would raise, or what a dry run cannot do
        says = f"the dry run ended: {type(error).__name__}: {error}"
        findings.append(Finding("memory", Verdict.UNKNOWN, says[:400]))
        return Report(command, capacity, [], findings, {})
    needs = needs_of(found.peaks, capacity)
    findings.append(disk_finding(found.files, capacity))
    relief = find_relief(cfg, needs, capacity, until=started + PATIENCE)
    return Report(command, capacity, needs, findings, found.files, found.blocks, relief)


def needs_of(peaks: object, capacity: Capacity) -> list[Need]:
    from sparsemend.doctor.peaks import Peak

    assert isinstance(peaks, dict)
    needs = []
    for (stage, device), peak in peaks.items():
        assert isinstance(peak, Peak)
        there = capacity.device if device == DEVICE else capacity.host
        needs.append(Need(stage, device, peak.bytes, peak.line, there))
    return needs


def find_relief(
    cfg: DictConfig, needs: Sequence[Need], capacity: Capacity, *, until: float
) -> Relief | None:
    """Overrides, one after the other, that lower the stage that fits least, until all fit."""
    from sparsemend.doctor.estimate import estimate

    lines: list[str] = []
    alters: list[str] = []
    tried: set[tuple[str, ...]] = set()
    while (tight := _tightest(needs)) is not None and monotonic() < until:
        for remedy in choices(cfg, tight.stage, tight.device):
            if (key := tuple(remedy.lines)) in tried or monotonic() >= until:
                continue
            tried.add(key)
            changed = remedy.applied(cfg)
            try:
                after = needs_of(estimate(changed).peaks, capacity)
            except Exception:  # the run would refuse it
                continue
            if _of(after, tight) < tight.bytes:
                cfg, needs = changed, after
                lines += remedy.lines
                alters += [remedy.alters] * bool(remedy.alters)
                break
        else:
            break
    if not lines:
        return None
    peaks = {(need.stage, need.device): need.bytes for need in needs}
    return Relief(lines, peaks, _tightest(needs) is None, alters)


def _tightest(needs: Sequence[Need]) -> Need | None:
    over = [need for need in needs if need.verdict is Verdict.NO_GO]
    return max(over, key=lambda need: need.with_margin / (need.there or 1), default=None)


def _of(needs: Sequence[Need], like: Need) -> int:
    """The peak of the same stage and device; none is none."""
    same = [n.bytes for n in needs if (n.stage, n.device) == (like.stage, like.device)]
    return max(same, default=0)
