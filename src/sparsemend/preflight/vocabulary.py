"""Check the knobs that mean the same in every member that has them, a user's own included.

    method.learning_rate         peak rate of what trains, above 0
    method.precision             that of the fit; bf16-true needs a bfloat16 model, float16 scaling
    method.scope                 `all` trains the whole model, which needs no pruning
    method.rank, method.groups   of an adapter: at most a linear's width; a divisor of its outputs
    method.distill               the dense model as teacher: weight, hidden_weight, teacher_device
    similarity_samples           calibration sequences compared, of a schedule or a method
    rounding                     how rates become whole weights

A member that does not read one of them under its settings, or not for its linears, says so
(`without_effect` in its file of early checks).
"""

from __future__ import annotations

import re

from omegaconf import DictConfig

from sparsemend.config.asked import Asked
from sparsemend.config.flags import says
from sparsemend.config.members import member_name
from sparsemend.method.adapter.shapes import check_groups, check_rank
from sparsemend.names import ROUNDINGS
from sparsemend.preflight.members import without_effect
from sparsemend.sparse.pattern import Pattern


def name_of(section: DictConfig) -> str:
    """The name of the member that builds a section."""
    return member_name(str(section.get("_target_", "")))


def leaves_whole(pruner: DictConfig) -> bool:
    """Whether a pruner neither takes weights away nor reads a support that is there."""
    return not (says(pruner, "prunes") or says(pruner, "reads_support"))


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
    if (cfg.model.get("dtype"), method.get("precision")) == ("float16", "32-true"):
        raise ValueError(
            "model.dtype=float16 loses small gradients unless the loss is scaled; set "
            "method.precision=16-mixed, which scales it, or model.dtype=bfloat16"
        )
    whole_model = method.get("scope") == "all"  # ordinary training, as of the tiny model
    if leaves_whole(cfg.pruner) and not whole_model:
        raise ValueError(
            f"pruner={name_of(cfg.pruner)} leaves nothing to repair by training; choose a pruner, "
            "pruner=existing for a checkpoint that is pruned already, or method=none"
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
    if not isinstance(distill, DictConfig) or not {"weight", "hidden_weight"} <= distill.keys():
        return  # none, or a user's own
    if not (distill.weight or distill.hidden_weight):
        return
    if says(cfg.pruner, "reads_support"):
        raise ValueError(
            f"method.distill.weight={distill.weight} and hidden_weight={distill.hidden_weight} "
            "ask to learn from the dense model, which an already pruned checkpoint "
            "(pruner=existing) does not have; set both to 0, or give the dense model and a pruner"
        )
    device = distill.get("teacher_device")
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise ValueError(
            f"method.distill.teacher_device={device} is no device; give cpu, cuda:0, cuda:1 ..., "
            "or null for where the model trains"
        )


def check_adapter_shapes(asked: Asked) -> None:
    """The rank fits every linear (outputs, inputs), and groups divide its outputs."""
    method = asked.cfg.method
    unread = without_effect(method)
    for key, check in (("rank", check_rank), ("groups", check_groups)):
        value = method.get(key)
        if isinstance(value, int) and value > 0 and key not in unread:
            check(f"method.{key}", value, asked.linears)


def check_true_sequential(cfg: DictConfig) -> None:
    """true_sequential has statistics that it may take anew inside a block."""
    if not cfg.get("true_sequential"):
        return
    if not says(cfg.pruner, "needs_calibration"):
        raise ValueError(
            f"true_sequential=true orders what a pruner reads of inputs, and pruner="
            f"{name_of(cfg.pruner)} reads none; set true_sequential=false"
        )
    if cfg.get("statistics") == "dense":
        raise ValueError(
            "true_sequential=true takes statistics anew inside every block, statistics=dense takes "
            "them once of the dense model; set one of the two to its default"
        )


def check_rounding(cfg: DictConfig, pattern: Pattern) -> None:
    """rounding is known, and no pattern undoes an exact budget."""
    rounding = cfg.get("rounding")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding} is not one of {', '.join(ROUNDINGS)}")
    if rounding == "pruner" or says(cfg.pruner, "reads_support") or pattern.unstructured:
        return
    raise ValueError(
        f"rounding=exact_budget with pattern {pattern}, which fixes the zeros of every group "
        "itself; use rounding=pruner"
    )
