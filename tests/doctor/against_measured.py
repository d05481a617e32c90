"""The doctor's host peak against the resident peak of the runs themselves, as a table.

    python tests/doctor/against_measured.py FOLDER [NAME ...]

Makes a random model of two 7B-shaped blocks in FOLDER, once, and carries out each run in fp32 (1.7
GB of weights) in a process of its own, on one thread: the largest peak of its stages (VmHWM, reset
per stage) above what the process holds when its imports are done and the model is about to be
loaded.  The estimate is that of `sparsemend-doctor`, from 2 blocks and as many windows as the run
has.  Memory does not depend on what else the machine does; a run takes up to 8 GB.

The file is in bf16, so that every weight is cast as it is loaded.  Weights of the file's own dtype
are views of the mapped file: pages of it that were read once stay resident, and count in VmHWM, as
long as one tensor of the file is in use, also when all others have been replaced.  The system takes
such pages back when it needs memory, so the doctor does not count them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__)
SHORT = (
    "method.max_steps=1 method.windows_per_step=1 hardware.micro_batch=1 method.validate_every=1 "
    "method.validation_windows=1 method.checkpoint_every=1"
)
PLAIN = "pruner=magnitude cache=off"
RUNS = {
    "wanda": "method=none",
    "ria, 2:4": "pruner=ria method=none pattern=2:4 sparsity=0.5",
    "magnitude, export": "pruner=magnitude method=none export=true",
    "perplexity, 8 x 512": f"{PLAIN} method=none model.context_length=512 "
    "hardware.evaluation_batch=8 evaluation.perplexity.windows=8",
    "dsnot": "method=dsnot method.max_cycles=2",
    "reconstruct": f"{PLAIN} method=reconstruct method.epochs=1 method.windows_per_step=2 "
    "method.held_out=0.25",
    "masked_lora": f"method=masked_lora {SHORT}",
    "masked_lora, checkpointing": f"{PLAIN} method=masked_lora {SHORT} "
    "hardware.activation_checkpointing=true",
    "lora, 8 x 256": f"{PLAIN} method=lora model.context_length=256 {SHORT} "
    "method.windows_per_step=8 hardware.micro_batch=8",
    "lors": f"{PLAIN} method=lors method.init_samples=1 method.init_batch_size=1 {SHORT}",
    "spp": f"{PLAIN} method=spp {SHORT}",
    "seft": f"{PLAIN} method=seft {SHORT} method.max_steps=4 method.update_interval=3 "
    "method.accumulation_steps=1",
    "losa": f"{PLAIN} method=losa {SHORT} method.max_steps=2 method.rounds=2 "
    "method.similarity_samples=4 method.round_steps=[1,1]",
}

HEADING = """| run | doctor, GB | its stage | measured, GB | its stage | difference |
|---|---:|---|---:|---|---:|"""


def lines_of(folder: Path, name: str) -> list[str]:
    """The overrides of a run."""
    ids = {part: f"data.{part}={folder}/{part}.ids" for part in ("calibration", "train", "test")}
    common = (
        f"model=local model.path={folder} model.dtype=float32 model.context_length=32 data=tokens"
    )
    return [
        *common.split(),
        *ids.values(),
        "data.calibration_samples=4",
        "hardware.threads=1",
        "hardware.stream=false",
        "hardware.evaluation_batch=4",
        "evaluation.perplexity.windows=4",
        *RUNS[name].split(),
    ]


def make_model(folder: Path) -> None:
    """A random LLaMA of two blocks of 4096 and 11008, and windows of random tokens."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, vocab_size=4096
    )
    torch.manual_seed(0)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for part, rows in (("calibration", 8), ("train", 64), ("test", 8)):
        save_file({"input_ids": torch.randint(4096, (rows, 512))}, folder / f"{part}.ids")


def measure(out: Path, lines: list[str]) -> None:
    """Carry out one run in this process and print its largest peak above the imports, in bytes."""
    import lightning  # noqa: F401
    from transformers import get_scheduler  # noqa: F401  what a fit imports with it

    import sparsemend.run.load as loading
    import sparsemend.training.module  # noqa: F401
    from sparsemend.cli import main

    held: list[int] = []
    load_dense = loading._dense_model

    def noted(job: object) -> object:
        status = Path("/proc/self/status").read_text().splitlines()
        held.append(next(int(s.split()[1]) * 1024 for s in status if s.startswith("VmRSS:")))
        return load_dense(job)  # type: ignore[arg-type]

    loading._dense_model = noted  # type: ignore[assignment]
    sys.argv = ["sparsemend", *lines, f"hydra.run.dir={out}"]
    main.main()
    cost = json.loads((out / "result.json").read_text())["cost"]
    peaks = {stage: spent["peak_bytes"] - held[0] for stage, spent in cost.items()}
    print("PEAKS", json.dumps(peaks))


def estimated(lines: list[str]) -> dict[str, int]:
    """Stage -> the doctor's host peak in bytes."""
    from sparsemend.config.compose import compose_command
    from sparsemend.doctor.estimate import estimate

    peaks = estimate(compose_command(lines).configs[0]).peaks
    return {stage: peak.bytes for (stage, _), peak in peaks.items()}


def said_by(script: Path, word: str, *arguments: str) -> str:
    """The rest of the line that begins with `word`, of a script in a process and on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(f"{word} "):
            return line.removeprefix(f"{word} ")
    raise RuntimeError(done.stderr[-2000:])


def row(name: str, ours: dict[str, int], theirs: dict[str, int]) -> str:
    """A row of the table: the largest of the stages, and which one it is."""
    cells, most = [name], []
    for peaks in (ours, theirs):
        stage = max(peaks, key=lambda stage: peaks[stage])
        most.append(peaks[stage])
        cells += [f"{peaks[stage] / 1e9:.2f}", stage]
    return f"| {' | '.join(cells)} | {most[0] / most[1] - 1:+.1%} |"


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "config.json").exists():
        make_model(folder)
    print(HEADING, flush=True)
    for name in sys.argv[2:] or RUNS:
        lines, out = lines_of(folder, name), folder / "run"
        try:
            said = said_by(HERE, "PEAKS", "--measure", str(out), *lines)
        except RuntimeError as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            continue
        finally:
            shutil.rmtree(out, ignore_errors=True)
        ours, theirs = estimated(lines), json.loads(said)
        print(row(name, ours, theirs), flush=True)
        print(json.dumps({"run": name, "doctor": ours, "measured": theirs}), file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        measure(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
