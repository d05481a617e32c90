"""Build the space of a search: listed points or an interval of one key, inside the key's bound.

A bound is an object that the search's yaml names (`search.bound._target_`), built of the whole
config.  Its grids: multiples of a step, or equal parts of the largest value.  Free of torch and of
Optuna.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from hydra.errors import HydraException
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.values import plain
from sparsemend.errors import blame

SAMPLERS = ("listed", "golden", "tpe")
GRIDS = ("spread", "step")


class Bound(Protocol):
    """What limits the values of a searched key, built as `Class(cfg, **keys of the yaml)`."""

    limit: float  # the largest legal value, above 0

    def check(self, value: float) -> None:
        """Raise ValueError where a value is not legal."""


@dataclass(frozen=True)
class Listed:
    """Points that are tried in their order."""

    points: tuple[Any, ...]

    @property
    def total(self) -> int:
        """The number of trials of the whole search."""
        return len(self.points)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value that may be proposed."""
        return self.points[0], self.points[-1]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval of which a sampler chooses `trials` points, after the baseline if any."""

    low: float
    high: float
    log: bool
    trials: int
    baseline: float | None

    @property
    def total(self) -> int:
        """The number of trials of the whole search, the baseline among them."""
        return self.trials + (self.baseline is not None)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value that may be proposed."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values of `key` that a search tries, and who chooses among them."""

    key: str
    sampler: str
    values: Listed | Interval
    seed: int


def space_of(cfg: DictConfig) -> Space:
    """The space of a config's `search`; raises ValueError on a setting that is not legal."""
    search = cfg.search
    if OmegaConf.is_missing(search, "key"):
        raise ValueError("search.key is missing; give the key to search, for example method.rank")
    if search.sampler not in SAMPLERS:
        raise ValueError(f"search.sampler={search.sampler} is not one of {', '.join(SAMPLERS)}")
    bound = bound_of(cfg)
    listed = search.sampler == "listed"
    return Space(
        key=search.key,
        sampler=search.sampler,
        values=_list_points(search, bound) if listed else _interval(search, bound),
        seed=cfg.seed,
    )


def bound_of(cfg: DictConfig) -> Bound | None:
    """The bound that a config's `search.bound` names, None without one."""
    node = cfg.search.bound
    if node is None:
        return None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(
            f"search.bound={node} is not null or a node with _target_; see "
            "conf/search/atp_common_difference.yaml"
        )
    try:
        make = instantiate(
            {**plain(node), "_partial_": True},
            # a bound may come from any module of the user
            _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS,
        )
    except HydraException as error:
        raise ValueError(f"search.bound cannot be built: {str(error).splitlines()[0]}") from error
    with blame(f"search.bound={node._target_}", "mend that class, or set search.bound=null"):
        bound: Bound = make(cfg)
    return bound


def _list_points(search: DictConfig, bound: Bound | None) -> Listed:
    """The points of a listed search, the baseline first, each once."""
    first = [search.baseline] if search.baseline is not None else []
    values = [*first, *_points(search, bound)]
    for value in values:
        if isinstance(value, list | dict):
            raise ValueError(f"search.points: {value} is not one value of {search.key}")
        if bound is not None and not is_number(value):
            raise ValueError(
                f"search.points: {value} is not a number, which search.bound="
                f"{search.bound._target_} limits; leave it out, or set search.bound=null"
            )
    points = tuple(dict.fromkeys(values))
    _check_inside(bound, points)
    return Listed(points)


def _points(search: DictConfig, bound: Bound | None) -> list[Any]:
    if search.points in GRIDS:
        if bound is None:
            raise ValueError(
                f"search.points={search.points} needs search.bound; give search.points a list of "
                "values"
            )
        spreads = search.points == "spread"
        return spread(bound.limit, search.count) if spreads else steps(bound.limit, search.step)
    if OmegaConf.is_list(search.points) and len(search.points):
        return list(plain(search.points))
    raise ValueError(
        f"search.points={search.points} is not a list of values for {search.key}; "
        "for example 'search.points=[1,2,4]'"
    )


def _interval(search: DictConfig, bound: Bound | None) -> Interval:
    """The interval of a golden section or of TPE; the bound is its end where none is given."""
    low, high, baseline = (_number_of(search, key) for key in ("low", "high", "baseline"))
    low = 0.0 if low is None else low
    high = bound.limit if high is None and bound is not None else high
    if high is None or not low < high:
        raise ValueError(
            f"search.low={low} and search.high={high} are no interval; give a lower search.low"
        )
    _check_inside(bound, (low, high))
    if baseline is not None and not low <= baseline <= high:
        raise ValueError(
            f"search.baseline={baseline} is not in [{low:g}, {high:g}]; set "
            "search.baseline=null to go without"
        )
    if search.log and not low > 0:
        raise ValueError(f"search.low={low} has no logarithm; give search.low above 0")
    if not isinstance(search.trials, int) or search.trials < 2:
        raise ValueError(f"search.trials={search.trials} is not an integer of at least 2")
    return Interval(
        low=float(low),
        high=float(high),
        log=bool(search.log),
        trials=search.trials,
        baseline=baseline,
    )


def _number_of(search: DictConfig, key: str) -> float | None:
    """The number at a key of the search, None of null."""
    if search[key] is not None and not is_number(search[key]):
        raise ValueError(f"search.{key}={search[key]} is not a number")
    value: float | None = search[key]
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_inside(bound: Bound | None, values: Iterable[Any]) -> None:
    for value in values:
        if bound is not None:
            bound.check(float(value))


def spread(limit: float, count: int) -> list[float]:
    """`count` equal parts of the bound: k / count of the largest value, k = 1..count."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"search.count={count} is not an integer of at least 1")
    return [limit * (k / count) for k in range(1, count + 1)]


def steps(limit: float, step: float) -> list[float]:
    """step, 2 step, ... up to the bound, in decimal arithmetic as in the ATP authors' script."""
    if not isinstance(step, int | float) or not step > 0:
        raise ValueError(f"search.step={step} is not above 0; the paper of ATP has 0.002")
    exact = Decimal(str(step))
    count = int(limit * (1 + 1e-9) / step + 1e-9)
    if count < 1:
        raise ValueError(f"search.step={step} exceeds the bound {limit:.4g}; lower it")
    return [float(exact * n) for n in range(1, count + 1)]
