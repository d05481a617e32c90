"""One examination, top to bottom: what is there, what the run needs, what would lower it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time

from omegaconf import DictConfig

from sparsemend.config.flags import says
from sparsemend.config.streaming import obstacle
from sparsemend.doctor.capacity import find_capacity
from sparsemend.doctor.disk import disk_finding
from sparsemend.doctor.peaks import DEVICE, HOST, Peak
from sparsemend.doctor.remedies import Remedy, choices
from sparsemend.doctor.report import Examination, Relief
from sparsemend.doctor.surroundings import NoShape, examine_surroundings, shapes_are_there
from sparsemend.doctor.verdict import Capacity, Finding, Need, Verdict

PATIENCE = 45.0  # seconds of processor time after which no further remedy is tried


def examine(
    cfg: DictConfig,
    command: Sequence[str],
    folder: Path,
    *,
    device_gb: float | None = None,
    host_gb: float | None = None,
    timed: bool = False,
) -> Examination:
    """Examine the run of a composed config, which would write into `folder`.

    device_gb, host_gb: free memory to take for granted, for a machine that is not this one.
    timed: whether to probe how many seconds its stages take here.
    """
    started = process_time()
    capacity = find_capacity(cfg, folder, device_gb=device_gb, host_gb=host_gb)
    findings = examine_surroundings(cfg, folder, pretended=device_gb is not None)
    try:
        shapes_are_there(cfg)
        from sparsemend.doctor.estimate import estimate

        whole = estimate(cfg)
        if would_stream(cfg, whole.peaks, capacity):
            cfg = Remedy({"hardware.stream": True}, ("",), HOST).apply(cfg)
            whole = estimate(cfg)
    except NoShape as error:
        findings.append(Finding("memory", Verdict.UNKNOWN, str(error)))
        return Examination(command, capacity, [], findings, {})
    except Exception as error:  # what the run itself would raise, or what a dry run cannot do
        says = f"the dry run ended: {type(error).__name__}: {error}"
        findings.append(Finding("memory", Verdict.UNKNOWN, says[:400]))
        return Examination(command, capacity, [], findings, {})
    needs = needs_of(whole.peaks, capacity)
    findings.append(disk_finding(whole.files, capacity))
    relief = find_relief(cfg, needs, capacity, until=started + PATIENCE)
    seconds: dict[str, float] = {}
    if timed:
        elsewhere = device_gb is not None or host_gb is not None
        reason = why_untimed(cfg, [*needs, *findings], elsewhere=elsewhere)
        if reason is None:
            from sparsemend.doctor.probe import probe_seconds

            seconds = probe_seconds(cfg)
        else:
            findings.append(Finding("seconds", Verdict.GO, f"not probed: {reason}"))
    return Examination(
        command, capacity, needs, findings, whole.files, whole.blocks, relief, seconds
    )


def why_untimed(
    cfg: DictConfig, answers: Sequence[Need | Finding], *, elsewhere: bool
) -> str | None:
    """Why no block of the run can be timed here; None where one can."""
    if elsewhere:
        return "the run is for another machine"
    if any(answer.verdict is Verdict.NO_GO for answer in answers):
        return "the run cannot work here as it is"
    if any(isinstance(each, Need) and each.verdict is Verdict.UNKNOWN for each in answers):
        return "whether a block fits is not known"
    if int(cfg.hardware.get("devices", 1)) > 1:
        return "several devices share the work"
    if says(cfg.pruner, "reads_support"):
        return "the run works on an earlier one's zeros, which random weights lack"
    return None


def would_stream(
    cfg: DictConfig, peaks: Mapping[tuple[str, str], Peak], capacity: Capacity
) -> bool:
    """Whether hardware.stream=auto leaves the blocks in files: above half of the host's memory."""
    if cfg.hardware.get("stream") != "auto" or obstacle(cfg) is not None:
        return False
    return capacity.host is not None and peaks["load", HOST].bytes > capacity.host / 2


def needs_of(peaks: Mapping[tuple[str, str], Peak], capacity: Capacity) -> list[Need]:
    """The peaks, each beside what is there for it."""
    there = {DEVICE: capacity.device, HOST: capacity.host}
    return [
        Need(stage, device, peak.bytes, peak.line, there[device])
        for (stage, device), peak in peaks.items()
    ]


def find_relief(
    cfg: DictConfig, needs: Sequence[Need], capacity: Capacity, *, until: float
) -> Relief | None:
    """Overrides, one after the other, that lower the stage that fits least, until all fit."""
    from sparsemend.doctor.estimate import estimate

    lines: list[str] = []
    alters: list[str] = []
    tried: set[tuple[str, ...]] = set()
    while (tight := _tightest(needs)) is not None and process_time() < until:
        for remedy in choices(cfg, tight.stage, tight.device):
            if (key := tuple(remedy.lines)) in tried or process_time() >= until:
                continue
            tried.add(key)
            changed = remedy.apply(cfg)
            try:
                after = needs_of(estimate(changed, only=tight.stage).peaks, capacity)
            except Exception:  # the run would refuse it
                continue
            if _of(after, tight) < tight.bytes:
                cfg = changed
                seen = {(need.stage, need.device): need for need in after}
                needs = [seen.get((need.stage, need.device), need) for need in needs]
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
