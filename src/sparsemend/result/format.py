"""A measurement as text, the same in every table."""

from __future__ import annotations

from collections.abc import Callable

LARGE = 1e5  # a model that is broken; its decimals say nothing


def three_digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def format_share(value: float | None) -> str:
    """A sparsity in [0, 1] with four decimals, `-` for None."""
    return "-" if value is None else f"{value:.4f}"


def format_metric(
    value: float | None, digits: int, *, large: Callable[[float], str] = three_digits
) -> str:
    """A metric with `digits` decimals, or as `large` shows it from 1e5 on; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < LARGE else large(value)
