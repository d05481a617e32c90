"""The devices and processes that the shipped hardware can have (no torch)."""

from __future__ import annotations

import os

from sparsemend.config.asked import Asked
from sparsemend.config.flags import says


def check(asked: Asked) -> None:
    """Raise ValueError unless devices are one, or several that train together, started here.

    And where a pass is computed again without the dropout that it had: torch keeps its state on
    CUDA and the CPU alone.
    """
    devices, accelerator = asked.section.devices, asked.section.accelerator
    if devices > 1 and not says(asked.section, "parallel"):
        several = f"use hardware=ddp hardware.devices={devices} hardware.accelerator={accelerator}"
        remedy = "a Mac has one; set hardware.devices=1" if accelerator == "mps" else several
        raise ValueError(f"hardware.devices={devices}, but one process uses one device; {remedy}")
    dropout = asked.cfg.method.get("dropout", 0)
    if accelerator == "mps" and asked.section.activation_checkpointing and dropout:
        raise ValueError(
            f"hardware.activation_checkpointing=true on Apple's GPU would compute other gradients "
            f"under method.dropout={dropout}, whose draws torch does not repeat there; set "
            "method.dropout=0, or hardware.activation_checkpointing=false"
        )
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1":
        raise ValueError(
            f"WORLD_SIZE={started} is set, so this is one of the processes of torchrun or the "
            "like, each of which would be a run of its own; start sparsemend once, with "
            f"hardware=ddp hardware.devices={started}, which starts the others"
        )
