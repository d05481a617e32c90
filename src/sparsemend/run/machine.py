"""Settings of the machine and of its libraries that decide the bits of a product.

Two machines, or two settings of one, that differ in any of these may round a product otherwise, and
a weight near a threshold is then kept by one and pruned by the other.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# environment variables with which MKL, oneDNN, cuBLAS and torch choose their kernels
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
)
DRIVER = Path("/proc/driver/nvidia/version")
PROCESSORS = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, Any]:
    """Device, processor, threads, libraries and the settings of their kernels, as JSON values."""
    return {
        "device": device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": metadata.version("torch"),
        "torch_build": torch.__config__.show(),
        "transformers": metadata.version("transformers"),
        "kernels": {name: os.environ.get(name) for name in CHOOSE_KERNELS},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.enabled,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": _cuda(device) if device.type == "cuda" else None,
    }


def processor() -> str:
    """The processor's name, where the system tells it, and its architecture."""
    try:
        lines = PROCESSORS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def _cuda(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver and libraries, and whether products may round their inputs to TF32."""
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "driver": DRIVER.read_text(encoding="utf-8") if DRIVER.is_file() else None,
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "reduced_precision": [
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ],
    }
