"""Seconds and peak memory of runs whose blocks stay in files, on random LLaMA checkpoints.

    python tests/pretrained/measure_streaming.py --shape 7b --blocks 8 16 32 --folder /tmp/streaming
    python tests/pretrained/measure_streaming.py --shape 7b --blocks 4 --compare    # in memory too
    python tests/pretrained/measure_streaming.py --blocks 8 -- pruner=sparsegpt
    python tests/pretrained/measure_streaming.py --blocks --page multirun/reference/streaming.md

Each run is a process of its own; its peak is the largest resident size of a stage, which the run
notes in its result, files in the page cache not counted.  Checkpoints are written block by block,
and removed unless --keep.  What was measured is kept in FOLDER/rows.jsonl, of which a page is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from time import perf_counter

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PAGE = """# Streamed blocks, measured

{text}

```bash
python tests/pretrained/measure_streaming.py --shape 7b --blocks 8 16 32 -- method=dsnot
```

| shape | blocks | weights, GB | run | blocks lie in | peak, GB | set by | seconds |
|---|---:|---:|---|---|---:|---|---:|
{rows}
{pairs}"""
TEXT = """Random LLaMA checkpoints in bf16, {samples}: pruned by Wanda or what the line says,
repaired where it says so, and measured, with `hardware.stream=true` or in memory.
**peak**: the largest resident size of the whole process, of which {base:.2f} GB are
what a run imports; pages of files in the page cache are not counted. {machine}"""
SHAPES = {  # hidden, intermediate, heads, key-value heads
    "tiny": (256, 704, 4, 4),
    "7b": (4096, 11008, 32, 32),
    "70b": (8192, 28672, 64, 8),
}
VOCABULARY = 32000
CHECKED = re.compile(r"visited one by one, give its forward \(([0-9.]+) s\)")  # a run's log says
IMPORTS = "import sparsemend.run.run, sparsemend.pruner.wanda, sparsemend.evaluation.perplexity"
GB = 1e9


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
    if not (checkpoint / "config.json").exists():  # which is written last
        shutil.rmtree(checkpoint, ignore_errors=True)
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
        # the run resets what the system notes as its peak before each stage
        peaks = {name: spent["peak_bytes"] for name, spent in result["cost"].items()}
        row = {
            "shape": arguments.shape,
            "blocks": blocks,
            "weights": weights,
            "overrides": " ".join(arguments.overrides),
            "windows": f"{arguments.samples} calibration windows of {arguments.seqlen} tokens",
            "streams": stream == "true",
            "seconds": cost.seconds,
            "checked": float(CHECKED.findall((folder / "log.txt").read_text())[0]),
            "peaks": peaks,
            "peak": max(cost.peak, *peaks.values()),
            "stages": {name: spent["seconds"] for name, spent in result["cost"].items()},
            "masks": digest_of(out / "masks.safetensors"),
            "metrics": result["metrics"],
        }
        print(json.dumps(row), flush=True)
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not arguments.keep:
            shutil.rmtree(out, ignore_errors=True)
    if not arguments.keep:
        shutil.rmtree(checkpoint)


def page(folder: Path, base: int, machine: str) -> str:
    """The last row of each run as a table, and what runs in memory differ in."""
    rows = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["shape"], row["blocks"], row["overrides"], row["streams"]] = row
    lines, pairs = [], []
    for (shape, blocks, overrides, streams), row in sorted(rows.items()):
        stage = max(row["peaks"], key=lambda name: row["peaks"][name])
        lines.append(
            f"| {shape} | {blocks} | {row['weights'] / GB:.1f} | {overrides or 'Wanda'} | "
            f"{'files' if streams else 'memory'} | {row['peak'] / GB:.2f} | {stage} | "
            f"{row['seconds']:.0f} |"
        )
        other = rows.get((shape, blocks, overrides, False))
        if streams and other is not None:
            equal = all(row[what] == other[what] for what in ("masks", "metrics"))
            shares = (
                f"{name} x {row['stages'][name] / seconds:.2f}"
                for name, seconds in other["stages"].items()
                if seconds > 1
            )
            pairs.append(
                f"{shape}, {blocks} blocks, {overrides or 'Wanda'}: supports and perplexities are "
                f"{'equal' if equal else 'NOT EQUAL'} in files and in memory; streaming took x "
                f"{row['seconds'] / other['seconds']:.2f} the time ({', '.join(shares)}); the "
                f"check that the blocks, visited one by one, give the model's forward took "
                f"{row['checked']:.1f} s of it, {other['checked']:.1f} s in memory.\n"
            )
    (samples,) = {row["windows"] for row in rows.values()}
    text = TEXT.format(samples=samples, base=base / GB, machine=machine)
    return PAGE.format(
        text=fill(text, 100),
        rows="\n".join(lines),
        pairs="\n" + "\n".join(pairs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--samples", type=int, default=2, help="calibration windows")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/streaming"))
    parser.add_argument("--compare", action="store_true", help="run in memory too")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and run folders")
    parser.add_argument("--page", type=Path, help="write the page of all rows here")
    parser.add_argument("--machine", default="", help="what the page says of the machine")
    parser.add_argument("overrides", nargs="*", help="of the run, after --")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    imported = cost_of([sys.executable, "-c", IMPORTS], arguments.folder / "log.txt")
    print(f"imported {imported.peak / GB:.2f} GB, {imported.seconds:.1f} s")
    for blocks in arguments.blocks:
        measure(arguments, blocks)
    if arguments.page:
        arguments.page.write_text(page(arguments.folder, imported.peak, arguments.machine))


if __name__ == "__main__":
    main()
