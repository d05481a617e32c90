"""What a repair method asks of the run it is part of, checked from the config alone (no torch)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from omegaconf import DictConfig

from sparsemend.checkpoint_headers import Shape


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
    """Whoever compares calibration sequences is given as many as it compares."""
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
    """There is a dense model to learn from where that is asked for."""
    distill = cfg.method.get("distill")
    if not distill or not (distill.weight or distill.hidden_weight):
        return
    if cfg.pruner.get("_target_", "").endswith(".Existing"):
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
        check_windows(samples, method.batch_size, method.held_out)


def check_windows(count: int, batch_size: int, held_out: float) -> None:
    """Raise ValueError unless so many calibration windows leave a full batch to train on."""
    if not isinstance(batch_size, int) or batch_size < 1 or not 0 <= held_out < 1:
        return  # said by the method itself
    if count >= batch_size and training_batches(-(-count // batch_size), held_out):
        return
    least = batch_size
    while not training_batches(-(-least // batch_size), held_out):
        least += 1
    raise ValueError(
        f"{count} calibration windows in batches of method.batch_size={batch_size} leave none to "
        f"train on beside method.held_out={held_out}; give at least "
        f"data.calibration_samples={least}, or lower method.batch_size"
    )


def training_batches(batches: int, held_out: float) -> int:
    """How many of so many batches are trained on; the others, the last, are held out."""
    return batches - (max(1, round(held_out * batches)) if held_out else 0)


def check_adapter_shapes(cfg: DictConfig, linears: Mapping[str, Shape]) -> None:
    """The rank fits, and SPP's groups divide, every linear (outputs, inputs)."""
    method = cfg.method
    rank, groups = method.get("rank"), method.get("groups")
    if method.get("adapter") == "none" or method.get("form") == "weights":
        rank = None
    for name, shape in linears.items():
        if isinstance(rank, int) and rank > min(shape):
            raise ValueError(
                f"method.rank={rank} exceeds min(inputs, outputs) = {min(shape)} of {name}; "
                f"set method.rank={min(shape)} or lower"
            )
        if isinstance(groups, int) and groups > 0 and shape[0] % groups:
            raise ValueError(
                f"method.groups={groups} does not divide the {shape[0]} outputs of {name}; "
                "set method.groups to a divisor of them"
            )
