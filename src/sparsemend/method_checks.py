"""What a repair method asks of the run it is part of, checked from the config alone (no torch)."""

from __future__ import annotations

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


def check_adapter_shapes(cfg: DictConfig, linears: Mapping[str, Shape]) -> None:
    """The rank fits, and SPP's groups divide, every linear (outputs, inputs)."""
    method = cfg.method
    rank, groups = method.get("rank"), method.get("groups")
    if method.get("adapter") == "none":
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
