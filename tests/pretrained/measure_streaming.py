"""Seconds and peak memory of runs whose blocks stay in files, on random LLaMA checkpoints.

    python tests/pretrained/measure_streaming.py --shape 7b --blocks 8 16 32 --folder /tmp/streaming
    python tests/pretrained/measure_streaming.py --shape 7b --blocks 4 --compare    # in memory too
    python tests/pretrained/measure_streaming.py --blocks 8 -- pruner=sparsegpt

Each run is a process of its own; its peak is the largest resident size of a stage, which the run
notes in its result, files in the page cache not counted.  `imported` is the peak of a process which
imports what a run imports and ends.  Checkpoints are written block by block, and removed unless
--keep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {  # hidden, intermediate, heads, key-value heads
    "tiny": (256, 704, 4, 4),
    "7b": (4096, 11008, 32, 32),
    "70b": (8192, 28672, 64, 8),
}
VOCABULARY = 32000
IMPORTS = "import sparsemend.run.run, sparsemend.pruner.wanda, sparsemend.evaluation.perplexity"
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of one process: wall seconds, peak resident bytes, the last lines that it printed."""

    seconds: float
    peak: int
    code: int


def write_checkpoint(folder: Path, shape: str, blocks: int) -> None:
    """A random LLaMA of bf16 weights, a file per block and one for the rest."""
    hidden, inner, heads, kv_heads = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).mul_(0.02).bfloat16()

    def ones() -> Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    folder.mkdir(parents=True)
    kv = hidden // heads * kv_heads
    places: dict[str, str] = {}

    def write(number: int, tensors: dict[str, Tensor]) -> None:
        name = f"model-{number:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    for block in range(blocks):
        sizes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        prefix = f"model.layers.{block}."
        tensors = {f"{prefix}{name}.weight": random(*size) for name, size in sizes.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        write(block + 1, tensors | {f"{prefix}{name}.weight": ones() for name in norms})
    rest = {
        "model.embed_tokens.weight": random(VOCABULARY, hidden),
        "lm_head.weight": random(VOCABULARY, hidden),
        "model.norm.weight": ones(),
    }
    write(blocks + 1, rest)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_tokens(folder: Path, samples: int, seqlen: int) -> list[str]:
    """Random windows for calibration and test; returns the overrides that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    for name, count in (("calibration", samples), ("test", 2)):
        ids = torch.randint(0, VOCABULARY, (count, seqlen), generator=generator)
        save_file({"input_ids": ids}, folder / f"{name}.safetensors")
    return [
        "data=tokens",
        *(f"data.{name}={folder / name}.safetensors" for name in ("calibration", "test")),
        f"data.train={folder / 'calibration'}.safetensors",
        f"data.seqlen={seqlen}",
        f"data.calibration_samples={samples}",
    ]


def cost_of(command: list[str], log: Path) -> Cost:
    """Run a process; its output goes to `log`."""
    started = perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(perf_counter() - started, usage.ru_maxrss * 1024, process.returncode)


def digest_of(masks: Path) -> str:
    """A hash of the supports in a masks file, whatever the order of its header."""
    hasher = hashlib.sha256()
    with safe_open(masks, framework="numpy") as file:
        for name in sorted(file.keys()):
            hasher.update(name.encode() + file.get_tensor(name).tobytes())
    return hasher.hexdigest()[:12]


def measure(arguments: argparse.Namespace, blocks: int) -> None:
    """Write one checkpoint, prune it, say what that took."""
    folder: Path = arguments.folder
    checkpoint = folder / f"{arguments.shape}_{blocks}"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arguments.shape, blocks)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    data = write_tokens(folder / "tokens", arguments.samples, arguments.seqlen)
    for stream in ("true", "false") if arguments.compare else ("true",):
        out = folder / f"run_{arguments.shape}_{blocks}_{stream}"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "sparsemend.cli.main", "model=local"]
        command += [f"model.path={checkpoint}", "model.dtype=bfloat16", *data, "method=none"]
        command += ["cache=off", f"hardware.stream={stream}", f"hydra.run.dir={out}"]
        cost = cost_of([*command, *arguments.overrides], folder / "log.txt")
        if cost.code:
            print((folder / "log.txt").read_text()[-2000:])
            sys.exit(f"the run with {blocks} blocks ended with {cost.code}")
        result = json.loads((out / "result.json").read_text())
        perplexity = result["metrics"]["pruned"].get("perplexity/test")
        stages = {name: spent["seconds"] for name, spent in result["cost"].items()}
        # the run resets what the system notes as its peak before each stage
        peak = max(spent["peak_bytes"] for spent in result["cost"].values())
        print(
            f"{arguments.shape} {blocks:3d} blocks {weights / GIB:6.2f} GiB  stream={stream:5s}  "
            f"{cost.seconds:7.1f} s  peak {max(peak, cost.peak) / GIB:5.2f} GiB  masks "
            f"{digest_of(out / 'masks.safetensors')}  perplexity {perplexity}  "
            + "  ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items()),
            flush=True,
        )
        if not arguments.keep:
            shutil.rmtree(out, ignore_errors=True)
    if not arguments.keep:
        shutil.rmtree(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--samples", type=int, default=2, help="calibration windows")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/streaming"))
    parser.add_argument("--compare", action="store_true", help="run in memory too")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and run folders")
    parser.add_argument("overrides", nargs="*", help="of the run, after --")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    imported = cost_of([sys.executable, "-c", IMPORTS], arguments.folder / "log.txt")
    print(f"imported {imported.peak / GIB:.2f} GiB, {imported.seconds:.1f} s")
    for blocks in arguments.blocks:
        measure(arguments, blocks)


if __name__ == "__main__":
    main()
