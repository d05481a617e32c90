"""Build the space of a search: points or an interval of one key, inside the bound of that key.

The bound of ATP's common difference, b = 2 min(s, 1-s) / (L-1), follows from the model's number of
blocks and the sparsity, so nothing illegal is proposed.  The grids: multiples of 0.002 (Huang et
al. 2025, arXiv 2502.14770) or equal parts of the total spread d (L-1), which no depth changes.
Free of torch and of Optuna.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.model import ModelConfig, find_model
from sparsemend.sparsity_schedule.rates.progression import bound, check_difference

SAMPLERS = ("listed", "golden", "tpe")
BOUNDS = ("common_difference",)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Values of `key`: points to try in order, or an interval of which `trials` are chosen."""

    key: str
    sampler: str
    points: tuple[Any, ...] | None
    low: float
    high: float
    log: bool
    trials: int
    baseline: Any
    seed: int

    @property
    def total(self) -> int:
        """The number of trials of the whole search, the baseline among them."""
        if self.points is not None and self.sampler == "listed":
            return len(self.points)
        return self.trials + (self.baseline is not None)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value that may be proposed."""
        return (self.points[0], self.points[-1]) if self.points else (self.low, self.high)


def space_of(cfg: DictConfig) -> Space:
    """The space of a config's `search`; raises ValueError on a setting that is not legal."""
    search = cfg.search
    if search.sampler not in SAMPLERS:
        raise ValueError(f"search.sampler={search.sampler} is not one of {', '.join(SAMPLERS)}")
    if search.bound not in (None, *BOUNDS):
        raise ValueError(f"search.bound={search.bound} is not one of {', '.join(BOUNDS)}, null")
    limit = None
    if search.bound is not None:
        _check_sparsity(cfg.sparsity)
        limit = bound(cfg.sparsity, _blocks(cfg))
        if math.isinf(limit):
            raise ValueError("a model of one block has no common difference to search")
    points = _points(cfg, limit)
    low = search.low if search.low is not None else 0.0
    high = limit if search.high is None and limit is not None else search.high
    for value in (*(points or ()), *((low, high) if points is None else ())):
        if limit is not None:
            check_difference(float(value), cfg.sparsity, _blocks(cfg))
    if points is None and (high is None or not low < high):
        raise ValueError(
            f"search.low={low} and search.high={high} are no interval; give a lower search.low"
        )
    if points is None and search.baseline is not None and not low <= search.baseline <= high:
        raise ValueError(
            f"search.baseline={search.baseline} is not in [{low:g}, {high:g}]; set "
            "search.baseline=null to go without"
        )
    if points is None and search.log and not low > 0:
        raise ValueError(f"search.low={low} has no logarithm; give search.low above 0")
    if search.sampler != "listed" and (not isinstance(search.trials, int) or search.trials < 2):
        raise ValueError(f"search.trials={search.trials} is not an integer of at least 2")
    return Space(
        key=search.key,
        sampler=search.sampler,
        points=points,
        low=float(low),
        high=float(high) if high is not None else float(low),
        log=bool(search.log),
        trials=search.trials,
        baseline=search.baseline,
        seed=cfg.seed,
    )


def _points(cfg: DictConfig, limit: float | None) -> tuple[Any, ...] | None:
    """The values of a listed search, baseline first; None where an interval is searched."""
    search = cfg.search
    if search.sampler != "listed":
        return None
    if search.points in ("spread", "step") and limit is None:
        raise ValueError(
            f"search.points={search.points} needs search.bound; give search.points a list of values"
        )
    if search.points == "spread":
        points: list[Any] = spread(limit or 0.0, search.count)
    elif search.points == "step":
        points = steps(limit or 0.0, search.step)
    elif OmegaConf.is_list(search.points) and len(search.points):
        points = list(search.points)
    else:
        raise ValueError(
            f"search.points={search.points} is no list of values for {search.key}; "
            "for example 'search.points=[1,2,4]'"
        )
    first = [search.baseline] if search.baseline is not None else []
    return tuple(dict.fromkeys([*first, *points]))  # each once


def spread(limit: float, count: int) -> list[float]:
    """`count` equal parts of the bound: k / count of the largest total spread, k = 1..count."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"search.count={count} is not an integer of at least 1")
    return [limit * (k / count) for k in range(1, count + 1)]


def steps(limit: float, step: float) -> list[float]:
    """step, 2 step, ... up to the bound, in decimal arithmetic as in the authors' shell script."""
    if not isinstance(step, int | float) or not step > 0:
        raise ValueError(f"search.step={step} is not above 0; the paper has 0.002")
    exact = Decimal(str(step))
    count = int(limit * (1 + 1e-9) / step + 1e-9)
    if count < 1:
        raise ValueError(f"search.step={step} exceeds the bound {limit:.4g}; lower it")
    return [float(exact * n) for n in range(1, count + 1)]


def _check_sparsity(sparsity: Any) -> None:
    if not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
        raise ValueError(
            f"sparsity {sparsity} leaves no room for rates that differ; give one in (0, 1)"
        )


def _blocks(cfg: DictConfig) -> int:
    """The number of blocks L: search.blocks, else that of config.json, from the hub if need be.

    The run would fetch the hub's config.json anyway.
    """
    if cfg.search.blocks is not None:
        return int(cfg.search.blocks)
    model = find_model(cfg.model)
    config = model.config if model.config is not None else _hub_config(cfg)
    if config.blocks is None:
        raise ValueError(
            f"the config of {model.path} does not state its number of blocks; give search.blocks=L"
        )
    return config.blocks


def _hub_config(cfg: DictConfig) -> ModelConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(cfg.model.path, revision=cfg.model.get("revision"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the config of {cfg.model.path} is out of reach, so the bound of the search is "
            f"unknown; give search.blocks=L ({str(error).splitlines()[0]})"
        ) from error
    return ModelConfig(config.to_dict())
