"""Refuse a logger that is not a section of its own."""

from __future__ import annotations

from omegaconf import DictConfig


def check_loggers(cfg: DictConfig) -> None:
    """Raise ValueError where the yaml of a user's own logger names no package."""
    for name, section in cfg.logger.items():
        if not isinstance(section, DictConfig) or "_target_" not in section:
            raise ValueError(
                f"logger.{name} is not a logger: each one is a section of its own; begin the yaml "
                "of your own logger with `# @package logger.NAME`"
            )
