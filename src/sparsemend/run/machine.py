"""Settings of the machine and of its libraries that decide the bits of a result.

Two machines, or two settings of one, that differ in any of these may round a product or a sum
otherwise, and a weight near a threshold is then kept by one and pruned by the other.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sparsemend.engine.build import KEY

# environment variables with which MKL, oneDNN, cuBLAS, torch and the engine choose their kernels
CHOOSE_KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    KEY,
)
LIBRARIES = ("torch", "transformers", "numpy", "scipy", "tokenizers", "flash-attn")
CUDA_WHEELS = "nvidia-"  # cuBLAS and the like, which may be newer than torch
DRIVER = Path("/proc/driver/nvidia/version")
PROCESSORS = Path("/proc/cpuinfo")
# lines of one processor there, of x86 and of ARM
TELLING = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


def machine(device: torch.device) -> dict[str, Any]:
    """Device, processor, threads, libraries and the settings of their kernels, as JSON values."""
    return {
        "device": device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),  # 3.12 sums floats otherwise than 3.11
        "libraries": _versions(),
        "torch_build": torch.__config__.show(),
        "kernels": {name: os.environ.get(name) for name in CHOOSE_KERNELS},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.enabled,
        "precision": _precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": _cuda(device) if device.type == "cuda" else None,
    }


def processor() -> dict[str, str]:
    """The architecture and, where the system tells it, the first processor's kind and features."""
    try:
        text = PROCESSORS.read_text(encoding="utf-8").partition("\n\n")[0]
    except (OSError, UnicodeDecodeError):
        text = f"model name: {platform.processor()}"
    lines = (line.partition(":") for line in text.splitlines())
    telling = {name.strip(): value.strip() for name, _, value in lines if name.strip() in TELLING}
    return {"machine": platform.machine(), **telling}


@cache
def _versions() -> dict[str, str | None]:
    """Of the libraries that compute; None where one is not installed."""
    wheels = sorted(
        name
        for each in metadata.distributions()
        if (name := str(each.metadata["Name"])).startswith(CUDA_WHEELS)
    )
    versions: dict[str, str | None] = {}
    for name in (*LIBRARIES, *wheels):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _precision() -> dict[str, str]:
    """What products may round their inputs to, in torch's newer settings, which cover the older."""
    places = {
        "": torch.backends,
        "mkldnn": torch.backends.mkldnn,
        "mkldnn.matmul": getattr(torch.backends.mkldnn, "matmul", None),
        "cuda.matmul": torch.backends.cuda.matmul,
        "cudnn": torch.backends.cudnn,
        "cudnn.conv": getattr(torch.backends.cudnn, "conv", None),
    }
    return {name: str(getattr(place, "fp32_precision", None)) for name, place in places.items()}


def _cuda(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver and libraries, and how products may be summed."""
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "driver": DRIVER.read_text(encoding="utf-8") if DRIVER.is_file() else None,
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "reduced_precision": [
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ],
    }
