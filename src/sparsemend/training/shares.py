"""Whether the windows of a step can be shared out evenly over processes (no torch)."""

from __future__ import annotations


def check_shares(windows: int, devices: int) -> None:
    """Raise ValueError unless each of `devices` processes gets the same number of windows."""
    if windows % devices:
        below, above = windows // devices * devices, -(-windows // devices) * devices
        choices = " or ".join(str(count) for count in (below, above) if count)
        raise ValueError(
            f"method.windows_per_step={windows} cannot be shared out evenly over hardware.devices="
            f"{devices}; set method.windows_per_step={choices}"
        )
