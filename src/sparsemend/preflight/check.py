"""Refuse what cannot work before anything heavy is imported and before a run folder exists.

Reads the composed config, config.json, safetensors headers, token ids and instructions; never
torch, transformers, datasets or lightning, whose import alone takes longer than all checks.
What needs a tokenizer, a device or the network is checked where it is used.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.headers import TensorShape, has_experts, linear_shapes
from sparsemend.checkpoint.model import ModelConfig, find_model
from sparsemend.config.renamed import check_config
from sparsemend.evaluation.zero_shot.task_names import find_tasks
from sparsemend.names import DTYPE_NAMES
from sparsemend.preflight.cache import check_cache
from sparsemend.preflight.data import check_files, data_sources
from sparsemend.preflight.declared import check_declared
from sparsemend.preflight.logger import check_logger
from sparsemend.preflight.method import (
    check_adapter_shapes,
    check_block_windows,
    check_deltas,
    check_distillation,
    check_pruning_rounds,
    check_rounds,
    check_similarity,
    check_training,
)
from sparsemend.preflight.modules import check_modules
from sparsemend.preflight.sparsity_schedule import check_rounding, check_schedule
from sparsemend.preflight.steps import check_steps
from sparsemend.result.finished import resolve_from_run
from sparsemend.result.protocol import solved_examples
from sparsemend.result.resume import check_resumable
from sparsemend.sparse.pattern import Pattern

log = logging.getLogger(__name__)

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
    check_declared(cfg)
    check_missing(cfg)
    check_config(cfg)
    check_modules(cfg)
    check_numbers(cfg)
    pattern = check_pattern(cfg)
    check_pruner(cfg, pattern)
    check_rounding(cfg, pattern)
    check_dtype(cfg)
    check_hardware(cfg)
    check_steps(cfg)
    check_training(cfg)
    check_rounds(cfg, pattern)
    check_pruning_rounds(cfg, pattern)
    check_similarity(cfg)
    check_block_windows(cfg)
    check_tasks(cfg)
    check_distillation(cfg)
    check_resume(cfg)
    check_sharing(cfg)
    check_logger(cfg)
    model = find_model(cfg.model)
    check_schedule(cfg, pattern, model)
    if model.config is not None:
        check_window(cfg, model.config)
        check_speed(cfg, model.config)
    if model.blocks is not None:
        check_linears(model.path, model.blocks)
        check_widths(cfg, pattern, model.blocks)
        check_adapter_shapes(cfg, linear_shapes(model.blocks))
        check_deltas(cfg, linear_shapes(model.blocks), model.parameters)
    check_files(cfg, model.config)


def check_missing(cfg: DictConfig) -> None:
    """Every mandatory key (`???`) has a value."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        example = EXAMPLES.get(key, "VALUE")
        raise ValueError(f"{key} has no value and is needed; give {key}={example}")


def check_numbers(cfg: DictConfig) -> None:
    """sparsity is in [0, 1), windows have at least two tokens, calibration at least one sample."""
    sparsity = cfg.sparsity
    if not _is_number(sparsity) or not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity {sparsity} is not in [0, 1); it is the fraction of zeros, for example 0.6"
        )
    for key, source in data_sources(cfg):
        _check_integer(f"{key}.seqlen", source.get("seqlen"), least=2)  # one predicts the next
        _check_integer(f"{key}.calibration_samples", source.get("calibration_samples"), least=1)
        for part, least in (("validation_examples", 1), ("test_examples", 0)):
            _check_integer(f"{key}.{part}", source.get(part), least=least)


def check_pattern(cfg: DictConfig) -> Pattern:
    """The parsed pattern, which agrees with the sparsity unless the support is given."""
    if _is_number(cfg.pattern):
        raise ValueError(
            f"pattern {cfg.pattern} is a number: YAML reads an unquoted 2:4 in base 60; "
            "quote it in the file, pattern: '2:4'"
        )
    pattern = Pattern.parse(cfg.pattern)
    if _builds(cfg.pruner, "existing") or _builds(cfg.pruner, "none"):
        return pattern  # an existing support fixes its own sparsity; none is held to 0 below
    pattern.check_sparsity(cfg.sparsity)
    if pattern.mixed and cfg.sparsity > 1 - 1 / pattern.group_size:
        raise ValueError(
            f"sparsity {cfg.sparsity} with pattern {pattern} exceeds 1 - 1/{pattern.group_size} = "
            f"{1 - 1 / pattern.group_size:g}: at least one of every {pattern.group_size} inputs "
            "stays; lower sparsity"
        )
    if not (pattern.unstructured or pattern.mixed or _uniform(cfg)):
        raise ValueError(
            f"pattern {pattern} fixes the sparsity of every block, which "
            f"{_name(cfg.sparsity_schedule)} varies; use pattern=mixed:{pattern.group_size} "
            "with rates by block, or sparsity_schedule=uniform"
        )
    return pattern


def check_pruner(cfg: DictConfig, pattern: Pattern) -> None:
    """The pruner can do what sparsity, pattern and schedule ask."""
    pruner = cfg.pruner
    if _builds(pruner, "none") and cfg.sparsity > 0:
        raise ValueError(
            f"pruner=none keeps every weight, but sparsity is {cfg.sparsity}; set sparsity=0 or "
            "choose a pruner, for example pruner=wanda"
        )
    if _builds(pruner, "none") and not pattern.unstructured:
        raise ValueError(
            f"pruner=none keeps every weight, but pattern is {pattern}; set pattern=unstructured"
        )
    if pruner.get("variant") and not _uniform(cfg):
        raise ValueError(
            "pruner.variant=true chooses one threshold for the uniform sparsity and ignores "
            f"{_name(cfg.sparsity_schedule)}; use sparsity_schedule=uniform or pruner.variant=false"
        )
    if pruner.get("variant") and not pattern.unstructured:
        raise ValueError(
            f"pruner.variant=true is defined without a pattern, not for {pattern}; "
            "set pruner.variant=false"
        )
    block_size, group_size = pruner.get("block_size"), pattern.group_size
    if block_size and group_size and block_size % group_size:
        raise ValueError(
            f"pruner.block_size={block_size} is not a multiple of {group_size} (pattern {pattern})"
            f"; set pruner.block_size={max(1, round(block_size / group_size)) * group_size}"
        )
    masks = pruner.get("masks")
    if masks is not None and not Path(masks).is_file():
        raise FileNotFoundError(
            f"pruner.masks={masks} does not exist; give a masks.safetensors, or null to read the "
            "support from the zeros"
        )


def check_dtype(cfg: DictConfig) -> None:
    """model.dtype and export_dtype are ones that models are computed in."""
    for key, dtype in (("model.dtype", cfg.model.get("dtype")), ("export_dtype", cfg.export_dtype)):
        if dtype not in DTYPE_NAMES and (key == "model.dtype" or dtype is not None):
            raise ValueError(f"{key}={dtype} is not one of {', '.join(DTYPE_NAMES)}")


def check_hardware(cfg: DictConfig) -> None:
    """There is at least one device; several need processes that train together, started here."""
    hardware = cfg.hardware
    if not _builds(hardware, "hardware"):
        return  # a user's own
    devices, accelerator = hardware.devices, hardware.accelerator
    _check_integer("hardware.devices", devices, least=1)
    if accelerator not in ("cpu", "gpu"):
        raise ValueError(f"hardware.accelerator={accelerator} is not one of cpu, gpu")
    if devices > 1 and hardware["_target_"].endswith(".Hardware"):
        raise ValueError(
            f"hardware.devices={devices}, but one process uses one device; "
            f"use hardware=ddp hardware.devices={devices} hardware.accelerator={accelerator}"
        )
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1":
        raise ValueError(
            f"WORLD_SIZE={started} is set, so this is one of the processes of torchrun or the "
            "like, each of which would be a run of its own; start sparsemend once, with "
            f"hardware=ddp hardware.devices={started}, which starts the others"
        )


def check_tasks(cfg: DictConfig) -> None:
    """Every zero-shot task that is asked for exists."""
    asked = cfg.evaluation.get("zero_shot")
    if asked is None or "suites" not in asked:
        return
    if asked.tasks is None and asked.suite not in asked.suites:
        raise ValueError(
            f"evaluation.zero_shot.suite={asked.suite} is not one of {', '.join(asked.suites)}; "
            "or give evaluation.zero_shot.tasks=[TASK]"
        )
    if asked.include_path is not None and not Path(asked.include_path).is_dir():
        raise FileNotFoundError(
            f"evaluation.zero_shot.include_path={asked.include_path} is no folder; give one of "
            "lm-eval task yamls"
        )
    tasks = asked.suites[asked.suite] if asked.tasks is None else solved_examples(asked.tasks)
    for task, count in tasks.items():
        _check_integer(f"evaluation.zero_shot.tasks.{task}", count, least=0)
    if not tasks:
        raise ValueError(
            "evaluation.zero_shot.tasks is empty; name at least one, for example "
            "evaluation.zero_shot.tasks={piqa: 0}"
        )
    find_tasks(list(tasks), asked.include_path)


def check_resume(cfg: DictConfig) -> None:
    """A run folder named to be resumed holds an unfinished run of this configuration."""
    if cfg.resume not in (None, "auto"):
        check_resumable(Path(cfg.resume), OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def check_sharing(cfg: DictConfig) -> None:
    """statistics and cache.when are known words; the cache of a single run can be written."""
    if cfg.statistics not in ("exact", "dense"):
        raise ValueError(f"statistics={cfg.statistics} is not one of exact, dense")
    if cfg.cache.when not in ("sweep", "always"):
        raise ValueError(f"cache.when={cfg.cache.when} is not one of sweep, always")
    if cfg.cache.when == "always":
        check_cache([cfg])


def check_window(cfg: DictConfig, config: ModelConfig) -> None:
    """No window is longer than the positions the model has."""
    for key, source in data_sources(cfg):
        positions, seqlen = config.positions, source.get("seqlen")
        if positions is not None and seqlen is not None and seqlen > positions[1]:
            raise ValueError(
                f"{key}.seqlen={seqlen} exceeds the model's {positions[0]}={positions[1]}; "
                f"set {key}.seqlen={positions[1]} or lower"
            )


def check_speed(cfg: DictConfig, config: ModelConfig) -> None:
    """Prompt and new tokens of the speed evaluation fit into the model's positions."""
    speed = cfg.evaluation.get("speed")
    if speed is None or config.positions is None:
        return
    asked, (name, positions) = speed.prompt_tokens + speed.new_tokens, config.positions
    if asked > positions:
        raise ValueError(
            f"evaluation.speed.prompt_tokens={speed.prompt_tokens} and new_tokens="
            f"{speed.new_tokens} exceed the model's {name}={positions}; lower either"
        )


def check_linears(path: str, blocks: dict[str, TensorShape]) -> None:
    """The blocks hold linears, and no experts."""
    if has_experts(blocks):
        raise ValueError(
            f"model {path} is a mixture of experts, whose fused 3-D weights are no nn.Linear; "
            "such models are not supported, choose a dense one"
        )
    if not linear_shapes(blocks):
        raise ValueError(
            f"model {path} has no nn.Linear inside its blocks, so nothing can be pruned (GPT-2 for "
            "example stores transposed Conv1D layers); choose a model built of nn.Linear"
        )


def check_widths(cfg: DictConfig, pattern: Pattern, blocks: dict[str, TensorShape]) -> None:
    """Every input width is a whole number of groups, or the reference behaviour was asked for."""
    group_size = pattern.group_size
    if not group_size or _builds(cfg.pruner, "existing") or _builds(cfg.pruner, "none"):
        return
    odd = {name: shape[1] for name, shape in linear_shapes(blocks).items() if shape[1] % group_size}
    if not odd:
        return
    name, width = next(iter(odd.items()))
    misfit = (
        f"{name} has {width} inputs, not a multiple of {group_size} (pattern {pattern}); "
        f"{len(odd)} linears like it"
    )
    if cfg.get("pattern_tail") != "reference":
        raise ValueError(
            f"{misfit}; choose an M that divides {width}, or pattern_tail=reference, which prunes "
            "the short last group as the reference codes do"
        )
    log.warning("%s; their short last group is pruned as the reference codes do", misfit)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_integer(key: str, value: Any, *, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise ValueError(f"{key}={value} is not an integer of at least {least}; set {key}={least}")


def _builds(group: DictConfig, stem: str) -> bool:
    """Whether the group's member is ours from the module `stem` (our modules and yamls agree)."""
    return _name(group) == stem


def _name(group: DictConfig) -> str:
    return str(group.get("_target_", "")).split(".")[-2:][0]


def _uniform(cfg: DictConfig) -> bool:
    return _builds(cfg.sparsity_schedule, "uniform")
