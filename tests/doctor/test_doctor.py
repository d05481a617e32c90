"""One examination: which overrides are tried, and when the answer is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig
from support.configs import compose

from sparsemend.doctor import doctor
from sparsemend.doctor.estimate import Estimate
from sparsemend.doctor.peaks import DEVICE, HOST, Peak
from sparsemend.doctor.verdict import Capacity, Need, Verdict

GB = 10**9
CARD = Capacity(64 * GB, 24 * GB, 100 * GB, "a card")
LONG = 1e9  # seconds of patience


def fit_of(cfg: DictConfig) -> int:
    """Bytes of a fit that grow by the micro-batch, and a tenth of that with checkpointing."""
    held = 16 * GB * int(cfg.hardware.micro_batch)
    return 12 * GB + (held // 10 if cfg.hardware.activation_checkpointing else held)


def pretend_estimate(cfg: DictConfig, *, only: str | None = None) -> Estimate:
    if cfg.hardware.offload:
        raise ValueError("this run is refused")
    peaks = {
        ("load", HOST): Peak(14 * GB, "a:1"),
        ("repair: fit", DEVICE): Peak(fit_of(cfg), "b:2"),
    }
    return Estimate(peaks, {"masks": GB}, 32)


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemend.doctor.estimate.estimate", pretend_estimate)


def needs(cfg: DictConfig) -> list[Need]:
    return doctor.needs_of(pretend_estimate(cfg).peaks, CARD)


def test_overrides_are_added_until_every_stage_fits() -> None:
    cfg = compose("run", ["hardware.micro_batch=8"])
    relief = doctor.find_relief(cfg, needs(cfg), CARD, until=LONG)
    assert relief is not None
    assert relief.lines == ["hardware.activation_checkpointing=true", "hardware.micro_batch=2"]
    assert relief.enough
    assert relief.peaks["repair: fit", DEVICE] == 12 * GB + 32 * GB // 10


def test_what_fits_needs_no_relief() -> None:
    cfg = compose("run", ["hardware.micro_batch=1", "hardware.activation_checkpointing=true"])
    assert doctor.find_relief(cfg, needs(cfg), CARD, until=LONG) is None


def test_without_patience_nothing_is_tried() -> None:
    cfg = compose("run", ["hardware.micro_batch=8"])
    assert doctor.find_relief(cfg, needs(cfg), CARD, until=0) is None


@pytest.mark.parametrize(
    ("line", "gigabytes", "streams"),
    [
        ("method=dsnot", 26, True),
        ("method=dsnot", 30, False),
        ("method=masked_lora", 26, False),
        ("hardware.stream=false", 26, False),
    ],
)
def test_blocks_are_streamed_where_auto_would(line: str, gigabytes: int, streams: bool) -> None:
    cfg = compose("run", [line])
    here = Capacity(gigabytes * GB, None, None, "CPU")
    assert doctor.would_stream(cfg, pretend_estimate(cfg).peaks, here) is streams


def test_a_dry_run_that_fails_leaves_the_memory_unknown(tmp_path: Path) -> None:
    cfg = compose("run", ["hardware.offload=true"])
    examination = doctor.examine(cfg, [], tmp_path)
    memory = next(finding for finding in examination.findings if finding.what == "memory")
    assert memory.verdict is Verdict.UNKNOWN
    assert memory.says == "the dry run ended: ValueError: this run is refused"
    assert examination.verdict.exit_code == 2


def test_a_model_without_a_config_here_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cfg = compose("run", ["model=local", "model.path=nobody/nothing"])
    examination = doctor.examine(cfg, [], tmp_path)
    assert examination.verdict is Verdict.UNKNOWN
    assert examination.needs == []


@pytest.mark.parametrize(
    ("line", "gigabytes", "elsewhere", "reason"),
    [
        ("method=none", 64, False, None),
        ("method=none", 64, True, "another machine"),
        ("method=none", 10, False, "cannot work here"),
        ("hardware=ddp", 64, False, "several devices"),
        ("pruner=existing", 64, False, "an earlier one's zeros"),
    ],
)
def test_a_block_is_timed_only_where_the_run_would_work(
    line: str, gigabytes: int, elsewhere: bool, reason: str | None
) -> None:
    cfg = compose("run", [line])
    need = Need("load", HOST, 14 * GB, "a:1", gigabytes * GB)
    said = doctor.why_untimed(cfg, [need], elsewhere=elsewhere)
    assert said is None if reason is None else reason in str(said)
