"""The doctor's estimate for models of 7B, 13B and 70B on cards of 24 and 80 GB, as a table.

    python tests/doctor/estimates.py [RUN ...]

No weights are needed, nothing is downloaded and nothing is measured: the configs are LLaMA 2's
shapes, and each row takes about half a minute of processor time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sparsemend.doctor.peaks import DEVICE, HOST, Peak
from sparsemend.doctor.verdict import Need

SHAPES = {  # hidden, intermediate, blocks, heads, key and value heads of LLaMA 2
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "70B": (8192, 28672, 80, 64, 8),
}
RUNS = {  # name -> overrides, whether blocks are streamed
    "Wanda": ("method=none", True),
    "SparseGPT": ("pruner=sparsegpt method=none", True),
    "DSnoT": ("method=dsnot", True),
    "reconstruct": ("method=reconstruct", True),
    "Wanda, in memory": ("method=none", False),
    "LoRS": ("method=lors", False),
    "masked LoRA": ("method=masked_lora", False),
    "SEFT": ("method=seft", False),
    "SEFT, candidates": ("method=seft method.sensitivity_gradient=candidates", False),
    "LoSA": ("method=losa", False),
}
CARDS = (24, 80)
HEADING = """| model | run | device, GB | its stage | 24 GB | 80 GB | host, GB | its stage |
|---|---|---:|---|---|---|---:|---|"""


def write_config(folder: Path, shape: tuple[int, ...]) -> None:
    """A config.json of a LLaMA of this shape, in bf16."""
    hidden, intermediate, blocks, heads, shared = shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def overrides(folder: Path, run: str) -> list[str]:
    line, streamed = RUNS[run]
    common = f"model=local model.path={folder} hardware=gpu_24gb"
    return [*common.split(), f"hardware.stream={str(streamed).lower()}", *line.split()]


def row(model: str, run: str, peaks: Mapping[tuple[str, str], Peak]) -> str:
    """A row of the table."""
    cells = [model, run]
    most = {}
    for device in (DEVICE, HOST):
        here = {stage: peak for (stage, where), peak in peaks.items() if where == device}
        most[device] = max(here.items(), key=lambda item: item[1].bytes)
    for device in (DEVICE, HOST):
        stage, peak = most[device]
        cells += [f"{peak.bytes / 1e9:.1f}", stage]
        if device == DEVICE:
            needs = [Need(stage, device, peak.bytes, peak.line, card * 10**9) for card in CARDS]
            cells += [need.verdict.value for need in needs]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    from sparsemend.config.compose import compose_command
    from sparsemend.doctor.estimate import estimate

    print(HEADING, flush=True)
    with TemporaryDirectory() as place:
        for model, shape in SHAPES.items():
            folder = Path(place) / model
            write_config(folder, shape)
            for run in sys.argv[1:] or RUNS:
                cfg = compose_command(overrides(folder, run)).configs[0]
                print(row(model, run, estimate(cfg).peaks), flush=True)


if __name__ == "__main__":
    main()
