"""Keys that are gone, and what to give in their place.

`batch_size` was the windows at once on one device, `accumulate` the number of such micro-batches in
a step.  What decides is the windows of a step over all devices, `windows_per_step`; how many of
them are at once is `hardware.micro_batch`.  `walk_batch` was the calibration windows of one forward
of a block; masks depended on it, so a forward takes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sparsemend.config.values import override_key

GONE = ("batch_size", "accumulate")
PERP = ("method.biases", "method.norms", "method.adapter")
FORMER = {  # their values where nobody set them
    "method": {"batch_size": 8, "accumulate": 1},
    "arena": {"batch_size": 2, "accumulate": 1},
}


def explain_override(key: str, lines: Sequence[str]) -> str | None:
    """What to give for the override of a key that is gone; None for any other key.

    lines: the whole command line, whose other overrides decide the new value.
    """
    if key == "hardware.walk_batch":
        return (
            f"{key} is gone: calibration sees one window at a time, and masks do not depend on it"
        )
    if key == "method.activation_checkpointing":
        return f"{key} is gone: it changes no number; give hardware.activation_checkpointing=true"
    if key in PERP and "method=perp" in lines:
        return (
            f"{key} is gone: what trains is a list; give method.trained=[biases,norms] or others "
            "of lm_head, mask_lora, scale_lora"
        )
    section, _, name = key.rpartition(".")
    if section not in FORMER or name not in GONE:
        return None
    values = {override_key(line): line.partition("=")[2] for line in lines}
    former = {f"{section}.{gone}": str(value) for gone, value in FORMER[section].items()}
    batch, accumulate = (values.get(k, v) for k, v in former.items())
    devices = values.get("hardware.devices", "2" if values.get("hardware") == "ddp" else "1")
    new = _new_keys(section, batch, accumulate, devices)
    return f"{key}={values[key]} is gone: a step reads {section}.{_MEANING}; give {new}"


def check_config(cfg: DictConfig) -> None:
    """Raise ValueError where a composed method still has a key that is gone, as in a user's yaml.

    A method without windows_per_step may have such keys of its own.
    """
    method = cfg.method
    gone = [key for key in GONE if key in method]
    if gone and "windows_per_step" in method:
        raise ValueError(
            f"method.{gone[0]}={method[gone[0]]} is gone: a step reads method.{_MEANING}; leave it "
            f"out of the yaml and set windows_per_step (now {method.windows_per_step})"
        )


def check_stored(config: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError where the config of the run in `folder` has keys that are gone."""
    for section, former in FORMER.items():
        stored = config.get(section) or {}
        ours = section == "arena" or str(stored.get("_target_", "")).startswith("sparsemend.")
        if "windows_per_step" in stored or not (ours and any(key in stored for key in GONE)):
            continue
        batch, accumulate = (str(stored.get(key, former[key])) for key in GONE)
        devices = str((config.get("hardware") or {}).get("devices", 1))
        settings = " ".join(f"{section}.{key}={stored[key]}" for key in GONE if key in stored)
        raise ValueError(
            f"{folder} holds a run of an earlier version, with {settings}; a step reads {section}."
            f"{_MEANING} now: run it again with {_new_keys(section, batch, accumulate, devices)}"
        )


_MEANING = "windows_per_step windows, over all devices"


def _new_keys(section: str, batch: str, accumulate: str, devices: str) -> str:
    factors = (batch, accumulate, devices)
    if not all(factor.isdecimal() for factor in factors):  # a sweep, or an interpolation
        return f"their product with the devices as {section}.windows_per_step"
    windows = int(batch) * int(accumulate) * int(devices)
    return f"{section}.windows_per_step={windows} hardware.micro_batch={batch}"
