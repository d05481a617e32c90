"""The bound of a search over ATP's common difference: b = 2 min(s, 1-s) / (L-1).

It follows from the sparsity and the model's number of blocks L, so that a search proposes nothing
illegal.  conf/search/atp_common_difference.yaml names it.  Free of torch.
"""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.model import ModelConfig, find_model
from sparsemend.sparsity_schedule.rates.progression import bound, check_difference


class CommonDifference:
    """The largest common difference of a config's sparsity and model."""

    def __init__(self, cfg: DictConfig, *, blocks: int | None) -> None:
        """blocks: L, None for that of the model's config.json.

        Raises ValueError where the sparsity or the model leaves no difference to choose.
        """
        _check_sparsity(cfg.sparsity)
        self.sparsity = float(cfg.sparsity)
        self.blocks = blocks if blocks is not None else _blocks_of(cfg.model)
        self.limit = bound(self.sparsity, self.blocks)
        if math.isinf(self.limit):
            raise ValueError("a model of one block has no common difference to search")

    def check(self, value: float) -> None:
        """Raise ValueError where a difference takes a rate out of [0, 1]."""
        check_difference(value, self.sparsity, self.blocks)


def _check_sparsity(sparsity: Any) -> None:
    if not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
        raise ValueError(
            f"sparsity {sparsity} leaves no room for rates that differ; give one in (0, 1)"
        )


def _blocks_of(settings: DictConfig) -> int:
    """The number of blocks that config.json states, fetched from the hub if need be.

    The run would fetch the hub's config.json anyway.
    """
    model = find_model(settings)
    config = model.config if model.config is not None else _hub_config(settings)
    if config.blocks is None:
        raise ValueError(
            f"the config of {model.path} does not state its number of blocks; "
            "give search.bound.blocks=L"
        )
    return config.blocks


def _hub_config(settings: DictConfig) -> ModelConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            settings.path,
            revision=settings.get("revision"),
            trust_remote_code=bool(settings.get("trust_remote_code")),  # None would ask on stdin
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the config of {settings.path} is out of reach, so the bound of the search is "
            f"unknown; give search.bound.blocks=L ({str(error).splitlines()[0]})"
        ) from error
    return ModelConfig(config.to_dict())
