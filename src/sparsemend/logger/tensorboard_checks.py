"""What TensorBoard needs before any work (no torch)."""

from __future__ import annotations

from importlib.util import find_spec

from sparsemend.config.asked import Asked


def check(asked: Asked) -> None:
    """Raise ValueError where neither writer of event files is installed."""
    if not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ValueError(
            "logger=tensorboard needs tensorboard, which is not installed: "
            'pip install -e ".[tensorboard]", or use logger=csv'
        )
