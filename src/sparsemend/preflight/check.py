"""Refuse what cannot work before anything heavy is imported and before a run folder exists.

Reads the composed config, config.json, safetensors headers, token ids and instructions; never
torch, transformers, datasets or lightning, whose import alone takes longer than all checks.
What needs a tokenizer, a device or the network is checked where it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.architecture import installed_tables
from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import other_weights, stored_linears
from sparsemend.checkpoint.model import ModelConfig, find_model
from sparsemend.checkpoint.places import uncalled_linears
from sparsemend.checkpoint.prunable_shapes import prunable_shapes
from sparsemend.config.asked import Asked
from sparsemend.config.flags import says
from sparsemend.config.renamed import check_config
from sparsemend.engine.build import asked_form
from sparsemend.names import DTYPE_NAMES
from sparsemend.preflight.attention import check_attention
from sparsemend.preflight.cache import check_cache
from sparsemend.preflight.checkpoint import check_checkpoint
from sparsemend.preflight.data import check_paths, check_tokenizers, data_sources
from sparsemend.preflight.declared import check_declared
from sparsemend.preflight.export import check_export
from sparsemend.preflight.linear_names import check_linear_names
from sparsemend.preflight.logger import check_loggers
from sparsemend.preflight.members import check_members
from sparsemend.preflight.modules import check_groups, check_modules
from sparsemend.preflight.moved import check_moved
from sparsemend.preflight.steps import check_steps
from sparsemend.preflight.streaming import check_streaming
from sparsemend.preflight.vocabulary import (
    check_adapter_shapes,
    check_distillation,
    check_rounding,
    check_similarity,
    check_training,
    check_true_sequential,
    leaves_whole,
    name_of,
)
from sparsemend.result.finished import resolve_from_run
from sparsemend.result.resume import check_resumable
from sparsemend.sparse.pattern import Pattern

log = logging.getLogger(__name__)

OUTSIDE = 0.2  # share of block weights; above the 0.09 of Mamba's A_log in tiny models, and below
# a third, which XLNet has in its attention

EXAMPLES = {
    "model.path": "/data/llama (a folder with config.json and weights) or org/name",
    "data.calibration": "calibration.safetensors",
    "data.train": "train.safetensors (data=tokens), train.txt (text) or train.jsonl (instructions)",
    "data.test": "test.safetensors (data=tokens) or test.txt (data=text)",
    "data.text.calibration": "calibration.safetensors",
    "data.text.train": "train.txt (data@data.text=text)",
    "data.text.test": "test.txt (data@data.text=text)",
    "sparsity_schedule.common_difference": "0.01",
    "sparsity_schedule.path": "rates.yaml (linear or block: sparsity), or a run's result.json",
}


def check(cfg: DictConfig) -> None:
    """Raise ValueError or FileNotFoundError, with value, bound and remedy, on what cannot work."""
    cfg = resolve_from_run(cfg)
    check_groups(cfg)
    asked_form()
    check_declared(cfg)
    check_missing(cfg)
    check_config(cfg)
    check_modules(cfg)
    check_sizes(cfg)
    pattern = check_pattern(cfg)
    check_pruner(cfg, pattern)
    check_rounding(cfg, pattern)
    check_true_sequential(cfg)
    check_dtype(cfg)
    check_export(cfg)
    check_attention(cfg)
    check_loggers(cfg)
    check_steps(cfg)
    check_training(cfg)
    check_similarity(cfg)
    check_distillation(cfg)
    check_resume(cfg)
    if cfg.cache.when == "always":
        check_cache([cfg])
    model = find_model(cfg.model)
    check_streaming(cfg, model)
    check_checkpoint(cfg.model, model)
    check_moved(cfg, model)
    if model.config is not None:
        check_window(cfg, model.config)
    linears: dict[str, TensorShape] = {}
    called: dict[str, TensorShape] = {}
    if model.blocks is not None:
        config = model.config.values if model.config is not None else {}
        check_linears(model.path, model.blocks, config)
        check_linear_names(cfg, model.blocks, config)
        linears = prunable_shapes(cfg, model.blocks, config)
        called = _without_uncalled(linears, config)
        check_widths(cfg, pattern, called)
    asked = Asked(cfg=cfg, pattern=pattern, model=model, linears=linears, key="", section=cfg)
    check_adapter_shapes(replace(asked, linears=called))
    check_tokenizers(cfg)
    check_members(asked)
    check_paths(cfg)


def check_missing(cfg: DictConfig) -> None:
    """Every mandatory key (`???`) has a value."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        example = EXAMPLES.get(key, "VALUE")
        raise ValueError(f"{key} has no value and is needed; give {key}={example}")


def check_sizes(cfg: DictConfig) -> None:
    """Windows have at least two tokens, calibration at least one; a user's yaml may not say so."""
    for key, source in data_sources(cfg):
        _check_integer(f"{key}.seqlen", source.get("seqlen"), least=2)  # one predicts the next
        _check_integer(f"{key}.calibration_samples", source.get("calibration_samples"), least=1)
        for part, least in (("validation_examples", 1), ("test_examples", 0)):
            _check_integer(f"{key}.{part}", source.get(part), least=least)


def check_pattern(cfg: DictConfig) -> Pattern:
    """The parsed pattern, which agrees with the sparsity unless the support is given."""
    pattern = Pattern.parse(cfg.pattern)
    if not says(cfg.pruner, "prunes"):
        return pattern  # an existing support fixes its own sparsity; no pruning is held to 0 below
    pattern.check_sparsity(cfg.sparsity)
    if pattern.mixed and cfg.sparsity > 1 - 1 / pattern.group_size:
        raise ValueError(
            f"sparsity {cfg.sparsity} with pattern {pattern} exceeds 1 - 1/{pattern.group_size} = "
            f"{1 - 1 / pattern.group_size:g}: at least one of every {pattern.group_size} inputs "
            "stays; lower sparsity"
        )
    if not (pattern.unstructured or pattern.mixed or says(cfg.sparsity_schedule, "uniform")):
        raise ValueError(
            f"pattern {pattern} fixes the sparsity of every block, which "
            f"{name_of(cfg.sparsity_schedule)} varies; use pattern=mixed:{pattern.group_size} "
            "with rates by block, or sparsity_schedule=uniform"
        )
    return pattern


def check_pruner(cfg: DictConfig, pattern: Pattern) -> None:
    """A pruner that keeps every weight is asked for neither sparsity nor pattern."""
    name = name_of(cfg.pruner)
    if leaves_whole(cfg.pruner) and cfg.sparsity > 0:
        raise ValueError(
            f"pruner={name} keeps every weight, but sparsity is {cfg.sparsity}; set sparsity=0 or "
            "choose a pruner, for example pruner=wanda"
        )
    if leaves_whole(cfg.pruner) and not pattern.unstructured:
        raise ValueError(
            f"pruner={name} keeps every weight, but pattern is {pattern}; set pattern=unstructured"
        )


def check_dtype(cfg: DictConfig) -> None:
    """model.dtype, of a user's own class too, is one that models are computed in."""
    dtype = cfg.model.get("dtype")
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"model.dtype={dtype} is not one of {', '.join(DTYPE_NAMES)}")


def check_resume(cfg: DictConfig) -> None:
    """A run folder named to be resumed holds an unfinished run of this configuration."""
    if cfg.resume not in (None, "auto"):
        check_resumable(Path(cfg.resume), OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def check_window(cfg: DictConfig, config: ModelConfig) -> None:
    """No window is longer than the positions the model has."""
    for key, source in data_sources(cfg):
        positions, seqlen = config.positions, source.get("seqlen")
        if positions is not None and seqlen is not None and seqlen > positions[1]:
            raise ValueError(
                f"{key}.seqlen={seqlen} exceeds the model's {positions[0]}={positions[1]}; "
                f"set {key}.seqlen={positions[1]} or lower"
            )


def check_linears(path: str, blocks: Mapping[str, TensorShape], config: Mapping[str, Any]) -> None:
    """The blocks hold linears, and little else that multiplies activations."""
    linears = stored_linears(blocks, config)
    others = other_weights(blocks, linears)
    weights = sum(stored.weights for stored in linears.values())
    outside = sum(map(math.prod, others.values()))
    if outside > OUTSIDE * (outside + weights):
        largest = max(others, key=lambda name: math.prod(others[name]))
        raise ValueError(
            f"model {path} keeps {outside / (outside + weights):.0%} of the weights of its "
            f"blocks in tensors that are no linears, first {largest} {others[largest]}; such "
            "models are not supported, choose one built of linears"
        )
    if not linears:
        raise ValueError(
            f"model {path} has no linear inside its blocks, so nothing can be pruned; choose "
            "a causal language model whose blocks are built of linears"
        )


def _without_uncalled(
    linears: Mapping[str, TensorShape], config: Mapping[str, Any]
) -> dict[str, TensorShape]:
    """The linears without those that the model's class calls nowhere, which stay dense."""
    tables = installed_tables()
    uncalled = frozenset() if tables is None else uncalled_linears(config, tables)
    return {n: shape for n, shape in linears.items() if n.rpartition(".")[2] not in uncalled}


def check_widths(cfg: DictConfig, pattern: Pattern, linears: Mapping[str, TensorShape]) -> None:
    """Every input width is a whole number of groups, or the reference behaviour was asked for."""
    group_size = pattern.group_size
    if not group_size or not says(cfg.pruner, "prunes"):
        return
    odd = {name: shape[1] for name, shape in linears.items() if shape[1] % group_size}
    if not odd:
        return
    name, width = next(iter(odd.items()))
    misfit = (
        f"{name} has {width} inputs, not a multiple of {group_size} (pattern {pattern}); "
        f"{len(odd)} linears like it"
    )
    if cfg.get("pattern_tail") != "reference":
        raise ValueError(
            f"{misfit}; choose an M that divides {width}, leave such linears dense with "
            "prunable.exclude, or set pattern_tail=reference, which prunes the short last group "
            "as the reference codes do"
        )
    log.warning("%s; their short last group is pruned as the reference codes do", misfit)


def _check_integer(key: str, value: Any, *, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise ValueError(f"{key}={value} is not an integer of at least {least}; set {key}={least}")
