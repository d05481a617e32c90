"""The file of rates, held against the model's headers (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemend.checkpoint.architecture import renames_tensors
from sparsemend.config.asked import Asked
from sparsemend.sparsity_schedule.rates.options import check_range
from sparsemend.sparsity_schedule.rates.rates_file import by_linear, check_rates, read_rates


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError where the tolerance is not in [0, 1]."""
    check_range(options, "tolerance", 0, 1)


def check(asked: Asked) -> None:
    """Raise ValueError or FileNotFoundError where the file cannot be read or misfits the model."""
    check_options(asked.section)
    rates = read_rates(Path(asked.section.path))
    config = asked.model.config
    model_type = str(config.values.get("model_type")) if config is not None else ""
    # a file may have the names of modules, which come with the model
    if asked.linears and not asked.renamed and not renames_tensors(model_type):
        sizes = {name: shape[0] * shape[1] for name, shape in asked.linears.items()}
        sparsity, tolerance = asked.cfg.sparsity, asked.section.tolerance
        check_rates(by_linear(rates, sizes), sizes, sparsity, asked.pattern, tolerance)
