"""Do once what several jobs have in common: dense measurements, pruned models, loading.

Processes share through the keyed cache of `conf/cache`, the jobs of one process through memory.
A key holds everything that decides the bits: the weights as loaded, the token windows, the
configuration of pruner and schedule with the files they name, seed, device, threads, and this
package's source.  So a reused model has the very bits that computing it here would give.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.config.values import digest
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.run.cache import Cache, Content
from sparsemend.run.digests import (
    environment,
    examples_digest,
    model_digest,
    section,
    tokens_digest,
    with_files,
)
from sparsemend.run.user_code import code_digest
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.packing import unpack
from sparsemend.sparsity_schedule.base import Allocation

log = logging.getLogger(__name__)

# keys that decide the pruned bits
DECISIVE = ("sparsity", "pattern", "pattern_tail", "rounding", "seed")
_MEMORY: dict[str, tuple[str, Any]] = {}  # kind -> (key, value) of this process's last job


class SharedWork:
    """One job's view of the shared work; `origins` records what it reused, at whose cost."""

    def __init__(self, cfg: DictConfig, out: Path, device: torch.device) -> None:
        hydra = HydraConfig.get()
        sweep = hydra.mode == RunMode.MULTIRUN
        wanted = cfg.cache.dir is not None and (sweep or cfg.cache.when == "always")
        self.cfg = cfg
        self.cache = Cache(Path(cfg.cache.dir), owner=out) if wanted else None
        # a cluster's job has a process of its own, in which no other job follows
        self.memory = bool(cfg.cache.memory) and "submitit" not in hydra.launcher["_target_"]
        self.device = device
        self.origins: dict[str, Any] = {}
        self.model_key = ""
        self.pruned_key: str | None = None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Everything besides models, windows and configuration that decides bits."""
        return environment(self.cfg, self.device)

    def remember(self, kind: str, parts: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """compute(), or what this process's last job computed from the same parts."""
        if not self.memory:
            return compute()
        key = digest(parts)
        last = _MEMORY.get(kind)
        hit = last is not None and last[0] == key
        started, worked = perf_counter(), process_time()
        if not hit:
            _MEMORY.pop(kind, None)  # first: two of a kind may not fit
            _MEMORY[kind] = key, compute()
        self.origins.setdefault("memory", {})[kind] = {
            "hit": hit,
            "seconds": round(perf_counter() - started, 3),
            "processor_seconds": round(process_time() - worked, 3),
        }
        return _MEMORY[kind][1]

    def model(self, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The dense model on the host, this job's own to change."""
        parts = {"model": section(self.cfg, "model"), "seed": self.cfg.seed}

        def load_here() -> tuple[PreTrainedModel, str]:
            model = load()
            return model, _model_key(model) if self.cache or self.memory else ""

        model, self.model_key = self.remember("model", parts, load_here)
        return copy.deepcopy(model) if self.memory else model

    def measure(
        self,
        state: str,
        name: str,
        evaluation: Evaluation,
        inputs: EvaluationInput,
        compute: Callable[[], Content],
    ) -> Content:
        """The outcome of one evaluation: its values are metrics, its tensors losses by window.

        A repeatable evaluation measures equal dense or pruned models only once.
        """
        key = {"dense": self.model_key, "pruned": self.pruned_key}.get(state)
        if not key or not type(evaluation).repeatable:
            return compute()
        validation = inputs.validation if evaluation.needs_validation else None
        parts = {
            **self.environment,
            "of": key,
            "evaluation": with_files(section(self.cfg, "evaluation")[name]),
            "code": code_digest(evaluation),
            "batch": inputs.batch_size,
            "test": tokens_digest(inputs.test),
            "task": examples_digest(inputs.task),
            "validation": examples_digest(validation),
        }

        def from_cache() -> Content:
            if self.cache is None:
                return compute()
            entry = self.cache.once("metrics", parts, compute)
            self.origins.setdefault("metrics", {}).setdefault(state, {})[name] = entry.origin()
            return entry.content

        if state == "dense":
            content: Content = self.remember(f"dense {name}", parts, from_cache)
            return content
        return from_cache()

    def prune(
        self,
        model: PreTrainedModel,
        parts: Mapping[str, Any],
        prune_here: Callable[[], Allocation],
    ) -> Allocation:
        """Prune `model` in place, by prune_here or from the cache; return the rate of every linear.

        parts: what decides the support and the weights besides model, configuration and machine.
        """
        if self.cache is None:
            return prune_here()
        key_parts = {
            **self.environment,
            "model": self.model_key,
            "pruner": with_files(section(self.cfg, "pruner")),
            "sparsity_schedule": with_files(section(self.cfg, "sparsity_schedule")),
            **{key: self.cfg[key] for key in DECISIVE},
            **parts,
        }
        self.pruned_key = digest(key_parts)
        if not self.cfg.cache.models:
            return prune_here()
        entry = self.cache.once("pruned", key_parts, lambda: pruned_content(model, prune_here()))
        self.origins["pruned"] = entry.origin()
        if entry.hit:
            restore_(model, entry.content.tensors)
            log.info("pruned model of %s, %.1f s saved", entry.made_by, entry.seconds)
        return Allocation(**entry.content.values)


def _model_key(model: PreTrainedModel) -> str:
    """A model's weights and configuration, and the code of a class that came with a checkpoint."""
    return digest([model_digest(model), code_digest(model)])


@torch.no_grad()
def pruned_content(model: nn.Module, allocation: Allocation) -> Content:
    """Kept weights (n,) and packed support of every SparseLinear; zeros take no room."""
    tensors = {}
    for name, linear in sparse_linears(model):
        tensors[f"{name}.kept"] = linear.weight[linear.keep]
        tensors[f"{name}.keep"] = linear.packed_keep
    return Content(asdict(allocation), tensors)


@torch.no_grad()
def restore_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Turn a dense model into the pruned one of `pruned_content`, bit for bit."""
    for name, linear in prunable_linears(model).items():
        device = linear.weight.device
        keep = unpack(tensors[f"{name}.keep"].to(device), linear.in_features)
        linear.weight.masked_scatter_(keep, tensors[f"{name}.kept"].to(device))
        model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))
