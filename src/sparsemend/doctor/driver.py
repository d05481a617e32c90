"""Whether torch and the driver of this machine's GPU fit together (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.doctor.verdict import Finding, Verdict

DRIVER = Path("/proc/driver/nvidia/version")
GO, NO_GO, UNKNOWN = Verdict.GO, Verdict.NO_GO, Verdict.UNKNOWN
# CUDA's major release -> the first driver of Linux that runs it (NVIDIA, CUDA Compatibility,
# "Minor Version Compatibility")
FIRST_DRIVER = {11: 450, 12: 525, 13: 580}


def driver(cfg: DictConfig) -> Iterator[Finding]:
    """Whether torch is a CUDA build that the driver of this machine can run."""
    if cfg.hardware.accelerator != "gpu":
        return
    build = torch_cuda()
    text = DRIVER.read_text(encoding="utf-8") if DRIVER.is_file() else ""
    yield driver_finding(build, text)


def torch_cuda() -> str | None:
    """The CUDA release that torch was built for, read from its files; None of a CPU build."""
    spec = find_spec("torch")
    folder = (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else Path()
    )
    file = folder / "version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(r"^cuda: [^=]*= '([\d.]+)'|^cuda = '([\d.]+)'", text, re.M)
    return next((group for group in match.groups() if group), None) if match else None


def driver_finding(build: str | None, text: str) -> Finding:
    """build: CUDA of torch; text: what the driver says of itself in /proc."""
    if build is None:
        return Finding(
            "driver",
            NO_GO,
            "hardware.accelerator=gpu, but this torch is a CPU build",
            "install a CUDA build of torch",
        )
    release = re.search(r"Kernel Module[^\d]*(\d+)\.", text)
    if release is None:
        return Finding("driver", UNKNOWN, f"torch is built for CUDA {build}; no driver is shown")
    least, have = FIRST_DRIVER.get(int(build.split(".")[0])), int(release[1])
    says = f"torch is built for CUDA {build}, the driver is {have}"
    if least is None:
        return Finding("driver", UNKNOWN, says)
    if have >= least:
        return Finding("driver", GO, says)
    return Finding("driver", NO_GO, says, f"install a driver of {least} or newer")
