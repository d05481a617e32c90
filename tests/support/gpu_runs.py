"""Random models of a 7B block shape and smaller, run on a GPU; all small where that is the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.command_runs import sparsemend_here
from transformers import AutoModelForCausalLM, LlamaConfig

DEVICE = os.environ.get("SPARSEMEND_GPU_CHECK_DEVICE", "cuda")
GPU = DEVICE != "cpu"
MISSING = GPU and not torch.cuda.is_available()
REASON = "no CUDA device; SPARSEMEND_GPU_CHECK_DEVICE=cpu runs these checks small, on the CPU"
HARDWARE = {
    "gpu": ("hardware=gpu",) if GPU else ("hardware.offload=true", "hardware.deterministic=true"),
    "cpu": ("hardware=cpu",),
}
Run = Callable[..., Path]


@dataclass(frozen=True)
class Shape:
    """A random LLaMA of two blocks and windows of its tokens."""

    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    window: int
    dtype: torch.dtype

    def write(self, folder: Path) -> Path:
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            num_hidden_layers=2,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.window,
            pad_token_id=0,
            use_cache=False,
        )
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        model.save_pretrained(folder / "llama")
        generator = torch.Generator().manual_seed(0)
        for name, rows in (("cal", 6), ("train", 8), ("test", 2)):
            size = (rows, self.window)
            tokens = torch.randint(3, self.vocabulary, size, generator=generator)
            save_file({"input_ids": tokens}, folder / f"{name}.safetensors")
        return folder

    def overrides(self, folder: Path) -> list[str]:
        return [
            *("model=local", f"model.path={folder / 'llama'}", "data=tokens"),
            f"model.dtype={str(self.dtype).removeprefix('torch.')}",
            *(
                f"data.{key}={folder / name}.safetensors"
                for key, name in (("calibration", "cal"), ("train", "train"), ("test", "test"))
            ),
            *(f"data.seqlen={self.window}", "data.calibration_samples=6", "cache=off"),
            *("hardware.stream=false", "hardware.evaluation_batch=1", "name=check"),
        ]


TINY = Shape(64, 112, 4, 96, 32, torch.float32)
BLOCK_7B = Shape(4096, 11008, 32, 32000, 512, torch.bfloat16) if GPU else TINY
# fp32, so that a CPU takes seconds and rounds to the same precision
SMALL = Shape(512, 1376, 8, 2048, 128, torch.float32) if GPU else TINY


def runner(shape: Shape, folder: Path) -> Run:
    """Runs the command on a random model of `shape`; the run folder, which has to be new."""
    shape.write(folder)

    def run(name: str, *overrides: str, on: str = "gpu", code: int = 0) -> Path:
        out = folder / name
        lines = [*shape.overrides(folder), *HARDWARE[on], f"hydra.run.dir={out}", *overrides]
        done = sparsemend_here(lines, folder)
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
        return out

    return run


def written(name: str, line: str) -> None:
    """Add a line to a file of the folder that check.sh collects, if there is one."""
    if folder := os.environ.get("SPARSEMEND_GPU_CHECK_OUT"):
        with (Path(folder) / name).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
