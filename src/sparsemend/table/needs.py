"""Estimate the memory and time that a published cell needs, by a rule on the model's size.

With P parameters (N of them prunable), L blocks of width D, vocabulary V, C calibration windows of
T tokens, training windows of S:

    measure  2 P + 2e9 (one forward's logits) + 4096 V 4
    prune    2 (N / L) + 2 C T D + 3 * 4 max(D, I)^2     one block, hidden states, Hessians
    train    2 P + 3 N + 34 S D L       bf16 weights, effective weight and mask, activations
                                        of one window (Korthikanti et al. 2022, arXiv 2205.05198)
    blocks   prune + 18 (N / L) + 2 C T D    trains_blocks: a block's fp32 weights, gradient and
                                        AdamW moments, the dense block; its targets
    bytes    the largest of what the job does
    seconds  (2 passes * 2 N C T  +  3 measurements * 2 P * 340,000  +  steps * 6 P * tokens
             of a step  +  2 C T I^2 per X^T X that a pruner takes  +  2 N C T per pass that the
             method adds, three for an epoch of one that trains block by block) / rate

Nothing is measured.  The rate is 1.2e14 FLOP/s on a GPU (40 % of an A100's bf16 peak) and 2e10 per
CPU core.  Loading, downloading and zero-shot tasks are left out.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sparsemend.config.flags import says
from sparsemend.config.locations import PACKAGE
from sparsemend.config.members import member_yaml
from sparsemend.table.job import CONTEXT, SAMPLES, SEQLEN, Job

MODELS = PACKAGE / "assets" / "models.csv"
TEST_TOKENS = 340_000  # WikiText-2 test under LLaMA's tokenizer: 166 windows of 2048
GPU_RATE = 1.2e14
CORE_RATE = 2e10
PATIENCE_HOURS = 24.0  # a longer job is not called runnable


@dataclass(frozen=True)
class TransformerSize:
    """A transformer's sizes, from its public configuration (assets/models.csv)."""

    blocks: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    mlp_matrices: int
    tied: int
    positions: int
    head_size: int = 0  # of a head that is not hidden / heads wide

    @property
    def prunable(self) -> int:
        """Weights of the linears inside blocks."""
        head = self.head_size or self.hidden // self.heads
        attention = 2 * self.hidden * head * (self.heads + self.key_value_heads)
        return self.blocks * (attention + self.mlp_matrices * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters but norms and biases, which are below 0.1 %."""
        tables = self.vocabulary * (1 if self.tied else 2) + self.positions
        return self.prunable + tables * self.hidden


@dataclass(frozen=True)
class Needs:
    """Estimates of one job."""

    bytes: float
    flops: float

    def seconds(self, machine: Machine) -> float:
        return self.flops / machine.rate


@dataclass(frozen=True)
class Machine:
    """The device that a job would run on here."""

    name: str
    bytes: int
    rate: float

    def can_run(self, needs: Needs) -> bool:
        """Whether the job fits and would end within a day."""
        return needs.bytes <= self.bytes and needs.seconds(self) <= PATIENCE_HOURS * 3600


@cache
def shapes() -> Mapping[str, TransformerSize]:
    """Sizes of every model that conf/model/ names."""
    with MODELS.open(encoding="utf-8", newline="") as file:
        rows = {row.pop("model"): row for row in csv.DictReader(file)}
    return {
        name: TransformerSize(**{key: int(v) for key, v in row.items() if v})
        for name, row in rows.items()
    }


def needs_of(job: Job) -> Needs | None:
    """Memory and arithmetic of a job; None for a model of unknown size."""
    shape = shapes().get(str(job.values["model"]))
    if shape is None:
        return None
    tokens = int(job.values[CONTEXT])
    return Needs(bytes=_bytes(job.values, shape, tokens), flops=_flops(job.values, shape, tokens))


def _bytes(values: Mapping[str, Any], shape: TransformerSize, tokens: int) -> float:
    weights = 2.0 * shape.parameters
    measure = weights + 2e9 + 4096 * shape.vocabulary * 4
    hessians = 12.0 * max(shape.hidden, shape.intermediate) ** 2
    states = 2.0 * int(values[SAMPLES]) * tokens * shape.hidden
    prune = 2.0 * shape.prunable / shape.blocks + states + hessians
    if _flag(values, "method", "trains_blocks"):
        return max(measure, prune + 18.0 * shape.prunable / shape.blocks + states)
    if not _flag(values, "method", "trains"):
        return max(measure, prune)
    activations = 34.0 * int(values[SEQLEN] or tokens) * shape.hidden * shape.blocks
    return max(measure, prune, weights + 3.0 * shape.prunable + activations)


def _flops(values: Mapping[str, Any], shape: TransformerSize, tokens: int) -> float:
    calibration = int(values[SAMPLES]) * tokens
    total = 2 * 2.0 * shape.prunable * calibration + 3 * 2.0 * shape.parameters * TEST_TOKENS
    if _flag(values, "pruner", "takes_gram"):
        inputs = 3 * shape.hidden**2 + shape.intermediate**2
        total += 2.0 * calibration * inputs * shape.blocks
    passes = _flag(values, "method", "calibration_passes")
    if _flag(values, "method", "trains_blocks"):
        passes += 3 * member_yaml("method", values["method"])["epochs"]
    total += passes * 2.0 * shape.prunable * calibration
    steps, windows = int(values["method.max_steps"]), int(values["windows_per_step"])
    if _flag(values, "method", "trains"):
        total += 6.0 * shape.parameters * steps * windows * int(values[SEQLEN] or tokens)
    return total


def _flag(values: Mapping[str, Any], group: str, flag: str) -> Any:
    """A flag of the class of the member that a job takes of a group."""
    return _flag_of(group, str(values[group]), flag)


@cache
def _flag_of(group: str, member: str, flag: str) -> Any:
    return says(member_yaml(group, member), flag)


@cache
def this_machine() -> Machine:
    """The first NVIDIA GPU, else the host."""
    gpu = _gpu()
    if gpu is not None:
        return gpu
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = os.cpu_count() or 1
    return Machine(f"{cores} CPU cores", host, CORE_RATE * cores)


def _gpu() -> Machine | None:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        name, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
        return Machine(name.strip(), int(mebibytes) * 2**20, GPU_RATE)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
