"""`sparsemend-benchmark`: what pruning and training-free repair cost, as multiples of the floor.

The floor of a sequential pruner is two passes of the blocks over the calibration tokens: one to
observe, one to propagate.  Floor and jobs alternate in one process on the same random LLaMA, and
every figure is the median of the per-round ratios, so a machine whose speed drifts still gives
comparable numbers.  `--profile` adds where the time of one job goes.
"""

from __future__ import annotations

import argparse
import statistics as stats
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from sparsemend.blocks import walk
from sparsemend.data.base import Examples
from sparsemend.method.base import Workbench
from sparsemend.method.dsnot import DSnoT
from sparsemend.pattern import Pattern
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.run import quieten
from sparsemend.sparsity_schedule.uniform import Uniform
from sparsemend.stages import Stages

UNSTRUCTURED = Pattern.parse("unstructured")


@dataclass(frozen=True)
class Setting:
    """One random LLaMA and its calibration tokens."""

    hidden: int
    intermediate: int
    blocks: int
    samples: int
    seqlen: int
    sparsity: float
    dtype: torch.dtype
    device: torch.device

    def model(self) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=self.seqlen,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        return model.eval().to(self.device)

    def batches(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        shape = (self.samples, self.seqlen)
        return torch.randint(0, 1024, shape, generator=generator).split(1)


Job = Callable[[PreTrainedModel, Setting], None]


@torch.no_grad()
def two_passes(model: PreTrainedModel, setting: Setting) -> None:
    """The floor: every block twice over every sequence."""
    for visit in walk(model, setting.batches()):
        visit.outputs()
    visit.outputs()  # the walk leaves out the last block's second pass; the floor has it


def pruning(pruner: Pruner) -> Job:
    def job(model: PreTrainedModel, setting: Setting) -> None:
        allocation = Uniform().allocate(model, [], setting.sparsity, UNSTRUCTURED)
        prune(model, setting.batches(), pruner, allocation, UNSTRUCTURED)

    return job


def swapping(model: PreTrainedModel, setting: Setting) -> None:
    """DSnoT's own walk with Wanda's start, every linear refined; the model is pruned before."""
    method = DSnoT(
        max_cycles=50,
        threshold=0.1,
        threshold_units="token_sum",
        variance_power=1.0,
        variance="within",
        same_sign=False,
        refine="all",
        mode="clean",
        start="pruner",
        sparsegpt_weights="mask_only",
    )
    method.repair(model, _bench(model, setting))


def _bench(model: PreTrainedModel, setting: Setting) -> Workbench:
    return Workbench(
        calibration=setting.batches(),
        train=Examples.of(torch.empty(0)),
        validation=Examples.of(torch.empty(0)),
        pruner=Wanda(variant=False),
        allocation=Uniform().allocate(model, [], setting.sparsity, UNSTRUCTURED),
        sparsity=setting.sparsity,
        pattern=UNSTRUCTURED,
        load_dense=setting.model,
        make_trainer=_no_trainer,
        device=setting.device,
        offload=False,
        out=Path(),
        seed=0,
    )


def _no_trainer(*, callbacks: list[Callback], **settings: object) -> Trainer:
    raise RuntimeError("training-free methods need no Trainer")


def _already_pruned(model: PreTrainedModel, setting: Setting) -> None:
    allocation = Uniform().allocate(model, [], setting.sparsity, UNSTRUCTURED)
    prune(model, [], Magnitude(group="row"), allocation, UNSTRUCTURED)


JOBS: dict[str, tuple[Job, Job | None]] = {
    "wanda": (pruning(Wanda(variant=False)), None),
    "sparsegpt": (pruning(SparseGPT(block_size=128, damping=0.01)), None),
    "dsnot": (swapping, _already_pruned),
}


def timed(job: Job, setting: Setting, *, before: Job | None = None) -> tuple[float, int]:
    """(seconds, peak bytes) of one job on a fresh model; loading and `before` are not counted."""
    model = setting.model()
    if before is not None:
        before(model, setting)
    stages = Stages(setting.device)
    started = perf_counter()
    with stages.measure("job"):
        job(model, setting)
    return perf_counter() - started, stages.costs["job"].peak_bytes


def compare(names: Sequence[str], setting: Setting, rounds: int) -> Table:
    """Alternate the floor and every job; a row per job with the median ratio and its range."""
    table = Table(title=_title(setting))
    for column in ("job", "seconds", "x two passes", "range", "peak memory"):
        table.add_column(column, justify="left" if column == "job" else "right")
    seconds: dict[str, list[float]] = {name: [] for name in ("two passes", *names)}
    peaks: dict[str, int] = dict.fromkeys(seconds, 0)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    timed(two_passes, setting)  # warm up
    for _ in range(rounds):
        floor, peak = timed(two_passes, setting)
        seconds["two passes"].append(floor)
        peaks["two passes"] = max(peaks["two passes"], peak)
        for name in names:
            job, before = JOBS[name]
            took, peak = timed(job, setting, before=before)
            seconds[name].append(took)
            peaks[name] = max(peaks[name], peak)
            ratios[name].append(took / floor)
    for name, values in seconds.items():
        ratio = ratios.get(name, [1.0])
        table.add_row(
            name,
            f"{stats.median(values):.2f}",
            f"{stats.median(ratio):.3f}",
            f"{min(ratio):.3f} - {max(ratio):.3f}",
            f"{peaks[name] / 2**20:,.0f} MiB",
        )
    return table


def profile(name: str, setting: Setting) -> str:
    """Where one job's time goes, by operator, from torch's profiler."""
    job, before = JOBS[name]
    model = setting.model()
    if before is not None:
        before(model, setting)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        job(model, setting)
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def _title(setting: Setting) -> str:
    return (
        f"random LLaMA, hidden {setting.hidden}, intermediate {setting.intermediate}, "
        f"{setting.blocks} blocks, {setting.samples} x {setting.seqlen} tokens, "
        f"{str(setting.dtype).removeprefix('torch.')}, {setting.device.type}, "
        f"{torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="sparsemend-benchmark", description=__doc__)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=2816)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="operator profile of each job")
    arguments = vars(parser.parse_args())
    names = arguments.pop("jobs") or list(JOBS)
    rounds, wants_profile = arguments.pop("rounds"), arguments.pop("profile")
    dtype, device = getattr(torch, arguments.pop("dtype")), torch.device(arguments.pop("device"))
    setting = Setting(dtype=dtype, device=device, **arguments)
    quieten()
    console = Console() if sys.stdout.isatty() else Console(width=100)
    console.print(compare(names, setting, rounds))
    if wants_profile:
        for name in names:
            console.print(f"[bold]{name}")
            print(profile(name, setting))


if __name__ == "__main__":
    main()
