"""Resident memory and logits of a packed folder beside its dense twin.

    python tests/pretrained/measure_packed.py RUN/model

The twin, the same weights with their zeros, is written to a temporary folder.  Each is loaded in a
process of its own, which generates a few tokens, so that all of it is read; what is resident then,
less what was before, is the model's.  Logits of the twin in float32 are the exact ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend.checkpoint.packed import read_packed
from sparsemend.engine.choice import kernels
from sparsemend.pretrained.packed import load_packed_model, load_unpacked

TOKENS = torch.arange(64, 128).unsqueeze(0)


def load(folder: Path) -> PreTrainedModel:
    transformers.logging.disable_progress_bar()
    if any(folder.glob("packed-*")):
        return load_packed_model(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def print_resident(folder: Path) -> None:
    kernels()
    before = resident()
    model = load(folder)
    model.generate(TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    print(resident() - before)


def resident_of(folder: Path) -> int:
    command = [sys.executable, __file__, "--resident", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@torch.inference_mode()
def compare(folder: Path) -> None:
    described = read_packed(folder)
    dtype = next(load(folder).parameters()).dtype
    with tempfile.TemporaryDirectory() as temporary:
        twin = Path(temporary)
        unpacked = load_unpacked(folder, dtype=dtype, attention=None, trust_remote_code=False)
        unpacked.save_pretrained(twin)
        del unpacked
        dense = load(twin)
        logits = {"dense": dense(TOKENS).logits, "packed": load(folder)(TOKENS).logits}
        exact = dense.float()(TOKENS).logits
        del dense
        for name, found in logits.items():
            distance = float((found - exact).norm() / exact.norm())
            print(f"{name:7} logits off the exact ones by {distance:.2e} of their norm")
        sizes = {"dense": resident_of(twin), "packed": resident_of(folder)}
    whole = described.packed_bytes + described.other_bytes
    print(
        f"packed {described.packed_bytes:,} bytes for {described.weights:,} weights; file {whole:,}"
    )
    print(
        f"resident: dense {sizes['dense'] / 2**20:.1f} MiB, packed {sizes['packed'] / 2**20:.1f} "
        f"MiB ({sizes['packed'] / sizes['dense']:.3f}; {sizes['packed'] / whole:.3f} of the file)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    (print_resident if args.resident else compare)(args.folder)
