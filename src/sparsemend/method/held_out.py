"""The split of calibration windows into training and held-out ones (no torch)."""

from __future__ import annotations


def check_windows(count: int, windows_per_step: int, held_out: float) -> None:
    """Raise ValueError unless `count` calibration windows leave a full batch for training."""
    size = windows_per_step
    if not isinstance(size, int) or size < 1 or not 0 <= held_out < 1:
        return  # the method itself refuses these
    if count >= size and training_batches(-(-count // size), held_out):
        return
    least = size
    while not training_batches(-(-least // size), held_out):
        least += 1
    raise ValueError(
        f"{count} calibration windows in batches of method.windows_per_step={size} leave none to "
        f"train on beside method.held_out={held_out}; give at least "
        f"data.calibration_samples={least}, or lower method.windows_per_step"
    )


def training_batches(batches: int, held_out: float, *, per_step: int = 1) -> int:
    """The number of training batches among `batches`; the last ones are held out.

    per_step: batches of an optimizer step.  Which windows are held out does not depend on it.
    """
    steps = -(-batches // per_step)
    trained = steps - (max(1, round(held_out * steps)) if held_out else 0)
    return min(batches, trained * per_step)


def even_micro_batch(windows_per_step: int, micro_batch: int | None) -> int:
    """The windows of a micro-batch where all of a step are equally large: at most `micro_batch`."""
    most = min(windows_per_step, micro_batch or windows_per_step)
    return next(size for size in range(most, 0, -1) if windows_per_step % size == 0)
