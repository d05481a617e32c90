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


def training_batches(batches: int, held_out: float) -> int:
    """The number of training batches among `batches`; the last ones are held out."""
    return batches - (max(1, round(held_out * batches)) if held_out else 0)
