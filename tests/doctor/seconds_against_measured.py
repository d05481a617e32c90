"""The seconds that the doctor's probe says against those of the runs themselves, as a table.

    python tests/doctor/seconds_against_measured.py FOLDER [NAME ...]

Makes a random model of eight blocks of 512 and 1408 in FOLDER, once.  The probe and the run follow
on one another, in a process and on one thread each.  Both are measured in seconds of processor
time, which depend less on what else the machine does than those of a clock; loading is left out of
both.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from time import process_time

from against_measured import said_by

HERE = Path(__file__)
RUNS = {
    "wanda": "method=none",
    "sparsegpt": "pruner=sparsegpt method=none",
    "dsnot": "method=dsnot",
    "reconstruct": "method=reconstruct method.epochs=2",
    "masked_lora": "method=masked_lora method.max_steps=16 method.windows_per_step=4 "
    "method.validate_every=8 method.validation_windows=8",
}
COMMON = (
    "model=local model.dtype=float32 model.context_length=128 data=tokens "
    "data.calibration_samples=32 hardware.threads=1 hardware.stream=false hardware.micro_batch=4 "
    "evaluation.perplexity.windows=32"
)

HEADING = """| run | doctor, s | measured, s | ratio | load |
|---|---:|---:|---:|---:|"""


def lines_of(folder: Path, name: str) -> list[str]:
    """The overrides of a run."""
    ids = [f"data.{part}={folder}/{part}.ids" for part in ("calibration", "train", "test")]
    return [*COMMON.split(), f"model.path={folder}", *ids, *RUNS[name].split()]


def make_model(folder: Path) -> None:
    """A random LLaMA of eight small blocks, and windows of random tokens."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=4096,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for part, rows in (("calibration", 32), ("train", 128), ("test", 32)):
        save_file({"input_ids": torch.randint(4096, (rows, 128))}, folder / f"{part}.ids")


def run(out: Path, lines: list[str]) -> None:
    """Carry out the run in this process and print its seconds."""
    from sparsemend import cost
    from sparsemend.cli import main

    cost.perf_counter = process_time  # type: ignore[attr-defined]
    sys.argv = ["sparsemend", *lines, f"hydra.run.dir={out}"]
    main.main()
    stages = json.loads((out / "result.json").read_text())["cost"]
    print("SECONDS", sum(stage["seconds"] for name, stage in stages.items() if name != "load"))


def estimate(lines: list[str]) -> None:
    """Probe in this process and print the seconds."""
    from sparsemend import cost
    from sparsemend.config.compose import compose_command
    from sparsemend.doctor import probe

    cost.perf_counter = probe.perf_counter = process_time  # type: ignore[attr-defined]
    seconds = probe.probe_seconds(compose_command(lines).configs[0])
    print("SECONDS", sum(seconds.values()))


def seconds_of(*arguments: str) -> float:
    """The seconds that this script says in a process of its own."""
    return float(said_by(HERE, "SECONDS", *arguments))


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "config.json").exists():
        make_model(folder)
    print(HEADING, flush=True)
    for name in sys.argv[2:] or RUNS:
        lines, out = lines_of(folder, name), folder / "run"
        ours = seconds_of("--probe", *lines)
        theirs = seconds_of("--run", str(out), *lines)
        shutil.rmtree(out, ignore_errors=True)
        load = os.getloadavg()[1]
        print(
            f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {load:.1f} |", flush=True
        )


if __name__ == "__main__":
    if sys.argv[1] == "--probe":
        estimate(sys.argv[2:])
    elif sys.argv[1] == "--run":
        run(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
