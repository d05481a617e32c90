"""In which dtype all weights can train, and when a dense support can move (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked


def check_weights(dtype: str, precision: str) -> None:
    """Raise ValueError if the dtype of a model would round most updates of its weights away."""
    if dtype != "float32" and precision != "bf16-true":
        raise ValueError(
            f"method=masked_full trains the weights in place, and at usual learning rates "
            f"model.dtype={dtype} rounds most updates away; set model.dtype=float32 and, for "
            "speed, method.precision=bf16-mixed, or ask for it with model.dtype=bfloat16 and "
            "method.precision=bf16-true"
        )


def check(asked: Asked) -> None:
    """Weights can train; a support that is to move does so at least once, and breaks no pattern."""
    method = asked.section
    check_weights(asked.cfg.model.dtype, method.precision)
    if method.mask_update == "none":
        return
    last = int(method.update_until * method.max_steps)
    if not 0 < method.update_interval <= last:
        raise ValueError(
            f"method.update_interval={method.update_interval} is not in [1, method.update_until * "
            f"method.max_steps = {last}], so the support would never move; set "
            f"method.update_interval={max(1, last)} or lower, or train longer"
        )
    if not asked.pattern.unstructured:
        raise ValueError(
            f"method.mask_update={method.mask_update} moves weights anywhere in a linear, which "
            f"breaks pattern {asked.pattern}; set method.mask_update=none"
        )
