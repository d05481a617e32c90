"""What this machine leaves a run: memory of the control group, of the GPU, and disk (no torch)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.blocks.room import available_bytes
from sparsemend.doctor.verdict import Capacity
from sparsemend.preflight.place import nearest_existing

QUERY = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]


def find_capacity(
    cfg: DictConfig, folder: Path, *, device_gb: float | None, host_gb: float | None
) -> Capacity:
    """The bytes that are free for a run in `folder`; those that are given are taken for it.

    A run on the CPU has no device but the host.
    """
    host = available_bytes() if host_gb is None else int(host_gb * 1e9)
    disk = shutil.disk_usage(nearest_existing(folder)).free
    if cfg.hardware.accelerator != "gpu":
        return Capacity(host, None, disk, "CPU")
    if device_gb is not None:
        return Capacity(host, int(device_gb * 1e9), disk, f"a pretended GPU of {device_gb:g} GB")
    name, free = free_gpu_memory()
    return Capacity(host, free, disk, name)


def free_gpu_memory() -> tuple[str, int | None]:
    """Name and free bytes of the first NVIDIA GPU; None where nothing tells."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=20)
        name, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "no GPU that nvidia-smi shows", None
