"""Check what a repair method demands of its run, from the config alone (no torch)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from math import prod

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.method.adapter.delta.budget import DeltaBudget
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.losa.plan import (
    RankPlan,
    check_fixed_pattern,
    check_slices,
    round_steps,
    round_targets,
)
from sparsemend.method.reconstruct.windows import check_windows
from sparsemend.method.seft.pattern import check_within_group
from sparsemend.sparse.drop_fraction import DECAYS
from sparsemend.sparse.pattern import Pattern

log = logging.getLogger(__name__)


def check_training(cfg: DictConfig) -> None:
    """A trained method has something to repair and a learning rate that moves it."""
    method = cfg.method
    if "learning_rate" not in method:
        return
    rate = method.learning_rate
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not rate > 0:
        raise ValueError(
            f"method.learning_rate={rate} is not above 0, so nothing would be trained; "
            "set for example method.learning_rate=1e-3"
        )
    if method.get("precision") == "bf16-true" and cfg.model.get("dtype") != "bfloat16":
        raise ValueError(
            f"method.precision=bf16-true needs a bfloat16 model, not model.dtype="
            f"{cfg.model.get('dtype')}; set model.dtype=bfloat16 or method.precision=bf16-mixed"
        )
    whole_model = method.get("scope") == "all"  # ordinary training, as of the tiny model
    if cfg.pruner.get("_target_", "").endswith(".NoPruner") and not whole_model:
        raise ValueError(
            "pruner=none leaves nothing to repair by training; choose a pruner, pruner=existing "
            "for a checkpoint that is pruned already, or method=none"
        )


def check_similarity(cfg: DictConfig) -> None:
    """A schedule or method that compares calibration sequences gets as many as it compares."""
    available = cfg.data.get("calibration_samples")
    for group in ("sparsity_schedule", "method"):
        samples = cfg[group].get("similarity_samples")
        if isinstance(samples, int) and isinstance(available, int) and samples > available:
            raise ValueError(
                f"{group}.similarity_samples={samples} exceeds data.calibration_samples="
                f"{available}; set data.calibration_samples={samples} or "
                f"{group}.similarity_samples={available}"
            )


def check_distillation(cfg: DictConfig) -> None:
    """A dense model exists where distillation is to learn from it."""
    distill = cfg.method.get("distill")
    if not distill or not (distill.weight or distill.hidden_weight):
        return
    if _existing(cfg):
        raise ValueError(
            f"method.distill.weight={distill.weight} and hidden_weight={distill.hidden_weight} "
            "ask to learn from the dense model, which an already pruned checkpoint "
            "(pruner=existing) does not have; set both to 0, or give the dense model and a pruner"
        )
    device = distill.teacher_device
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise ValueError(
            f"method.distill.teacher_device={device} is no device; give cpu, cuda:0, cuda:1 ..., "
            "or null for where the model trains"
        )


def check_block_windows(cfg: DictConfig) -> None:
    """A method that trains on the calibration windows block by block has enough of them."""
    method, samples = cfg.method, cfg.data.get("calibration_samples")
    if "held_out" in method and isinstance(samples, int):
        check_windows(samples, method.windows_per_step, method.held_out)


def check_pruning_rounds(cfg: DictConfig, pattern: Pattern) -> None:
    """A method that prunes in rounds has a target, a rank, steps and data for each (LoSA)."""
    method = cfg.method
    if "mean_rank" not in method:
        return
    rounds = method.rounds
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"method.rounds={rounds} is not an integer of at least 1; set 5")
    check_fixed_pattern(pattern, fixed=method.fixed_pattern)
    round_targets(method.targets, cfg.sparsity, rounds)
    round_steps(method.round_steps, method.max_steps, rounds)
    check_slices(method.data_slices, rounds)
    ranks = (method.mean_rank, method.rank_growth, method.min_rank, method.max_rank)
    RankPlan(*ranks, method.rank_repair).check(rounds)
    if not cfg.sparsity_schedule.get("_target_", "").endswith(".Uniform"):
        log.warning(
            "sparsity_schedule shapes only the one-shot model it is compared with: this method "
            "sets the rate of every block itself, round by round"
        )


def check_adapter_shapes(cfg: DictConfig, linears: Mapping[str, TensorShape]) -> None:
    """The rank fits every linear (outputs, inputs), and SPP's groups divide its outputs."""
    method = cfg.method
    key = "max_rank" if "max_rank" in method else "rank"
    rank, groups = method.get(key), method.get("groups")
    if method.get("adapter") == "none" or method.get("form") == "weights":
        rank = None
    for name, shape in linears.items():
        if isinstance(rank, int) and rank > min(shape):
            raise ValueError(
                f"method.{key}={rank} exceeds min(inputs, outputs) = {min(shape)} of {name}; "
                f"set method.{key}={min(shape)} or lower"
            )
        if isinstance(groups, int) and groups > 0 and shape[0] % groups:
            raise ValueError(
                f"method.groups={groups} does not divide the {shape[0]} outputs of {name}; "
                "set method.groups to a divisor of them"
            )


def check_rounds(cfg: DictConfig, pattern: Pattern) -> None:
    """The rounds in which sparse deltas or a dense support move take place and move something."""
    method = cfg.method
    check_within_group(method, pattern)
    if method.get("prune_back") == "pruner" and _existing(cfg):
        raise ValueError(
            "method.prune_back=pruner prunes as the run did, but pruner=existing pruned nothing; "
            "set method.prune_back=magnitude"
        )
    if "budget" in method:
        RoundSchedule(
            interval=method.update_interval,
            window=method.accumulation_steps,
            steps=method.max_steps,
            initial=method.initial_drop_rate,
            decay=method.drop_schedule,
        )
    if method.get("mask_update", "none") != "none":
        check_mask_update(cfg, pattern)
    if method.get("adapt") is False and (method.grow_scope, method.init_scope) != (
        "active",
        "active",
    ):
        raise ValueError(
            "method.adapt=false prunes nothing for what grows on pruned positions; set "
            "method.grow_scope=active and method.init_scope=active too"
        )


def check_mask_update(cfg: DictConfig, pattern: Pattern) -> None:
    """A dense support moves at least once, by a real share, and has no pattern to break."""
    method = cfg.method
    last = int(method.update_until * method.max_steps)
    if not 0 < method.update_interval <= last:
        raise ValueError(
            f"method.update_interval={method.update_interval} is not in [1, method.update_until * "
            f"method.max_steps = {last}], so the support would never move; set "
            f"method.update_interval={max(1, last)} or lower, or train longer"
        )
    if not 0 < method.initial_drop_rate <= 1:
        raise ValueError(
            f"method.initial_drop_rate={method.initial_drop_rate} is not in (0, 1]; it is the "
            "fraction of kept weights that a move replaces, for example 0.3"
        )
    if method.drop_schedule not in DECAYS:
        raise ValueError(
            f"method.drop_schedule={method.drop_schedule} is not one of: {', '.join(DECAYS)}"
        )
    if not pattern.unstructured:
        raise ValueError(
            f"method.mask_update={method.mask_update} moves weights anywhere in a linear, which "
            f"breaks pattern {pattern}; set method.mask_update=none"
        )


def check_deltas(
    cfg: DictConfig, linears: Mapping[str, TensorShape], parameters: int | None
) -> None:
    """No more sparse deltas than the linears (outputs, inputs) keep weights.

    parameters: their number in the whole model, None where it is not known.
    """
    method = cfg.method
    if "budget" not in method:
        return
    budget = DeltaBudget(**method.budget)
    if _existing(cfg) or (parameters is None and budget.match == "density"):
        return  # known once the model is loaded
    weights = sum(map(prod, linears.values()))
    kept = int((1 - cfg.sparsity) * weights)
    total = budget.total(linears, parameters or 0)
    if total > kept:
        raise ValueError(
            f"method.budget.match={budget.match} asks for {total:,} deltas, but sparsity "
            f"{cfg.sparsity} keeps {kept:,} weights; lower method.budget.{budget.match} to "
            f"{kept / total:.3g} of its value or less"
        )


def _existing(cfg: DictConfig) -> bool:
    """Whether the checkpoint is pruned already."""
    return bool(cfg.pruner.get("_target_", "").endswith(".Existing"))
