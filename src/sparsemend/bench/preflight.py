"""Refuse a bench that cannot work before torch is imported, a model built or a folder made."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig

from sparsemend.bench.choices import compose_section
from sparsemend.engine.build import asked_form
from sparsemend.names import DTYPE_NAMES
from sparsemend.preflight.check import check_missing

LEAST = {
    "samples": 1,
    "seqlen": 2,
    "rank": 1,
    "rows": 1,
    "columns": 1,
    "inputs": 1,
    "calls": 1,
    "trials": 1,
    "examples": 1,
    "windows": 1,
    "median_length": 2,
    "context": 1,
}
MOST_THREADS = 1024  # as hardware.threads; for some 100,000 OpenMP lacks memory and aborts
COUNTS = ("hidden", "intermediate", "blocks", "heads", "key_value_heads", "vocabulary")


def check(cfg: DictConfig, search: list[str]) -> None:
    """Raise ValueError or OverrideError, with value, bound and remedy, on what cannot work."""
    check_missing(cfg)
    asked_form()
    _check_count("rounds", cfg.rounds, least=1)
    if cfg.threads is not None:
        _check_count("threads", cfg.threads, least=1)
        if cfg.threads > MOST_THREADS:
            raise ValueError(f"threads={cfg.threads} is above {MOST_THREADS}; set threads=1")
    if not isinstance(cfg.sparsity, int | float) or not 0 <= cfg.sparsity < 1:
        raise ValueError(
            f"sparsity {cfg.sparsity} is not in [0, 1); it is the fraction of zeros, for example "
            "0.6"
        )
    if cfg.dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype={cfg.dtype} is not one of {', '.join(DTYPE_NAMES)}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(cfg.device)):
        raise ValueError(f"device={cfg.device} is not cpu, cuda or cuda:N; set device=cpu")
    check_shape(cfg.shape)
    check_suite(cfg.suite, search)
    check_axes(cfg.suite, cfg.shape)
    if "clock" in cfg.suite:
        check_clock(cfg.suite.clock, cfg.threads)
        if cfg.suite.clock == "cpu" and cfg.device != "cpu":
            raise ValueError(
                f"suite.clock=cpu does not count what {cfg.device} does; set suite.clock=wall"
            )
    if "lengths" in cfg.suite:
        check_steps(cfg)


def check_shape(shape: DictConfig) -> None:
    """Counts are positive; heads divide the width into even parts, key-value heads the heads."""
    for key in COUNTS:
        _check_count(f"shape.{key}", shape[key], least=1)
    if shape.hidden % (2 * shape.heads):
        raise ValueError(
            f"shape.hidden={shape.hidden} is not shape.heads={shape.heads} times an even head width"
            f"; set shape.hidden={2 * shape.heads * max(1, shape.hidden // (2 * shape.heads))}"
        )
    if shape.heads % shape.key_value_heads:
        raise ValueError(
            f"shape.heads={shape.heads} is not a multiple of shape.key_value_heads="
            f"{shape.key_value_heads}; set shape.key_value_heads={shape.heads}"
        )


def check_suite(suite: DictConfig, search: list[str]) -> None:
    """Labels are known, the members they name exist, and token counts can be windows."""
    for key, least in LEAST.items():
        if key in suite and "hidden" not in suite:  # there they are lists
            _check_count(f"suite.{key}", suite[key], least=least)
    if "spread" in suite:
        check_lengths(suite)
    if "method" in suite:
        compose_section("suite.method", suite.method, search)
    if "densities" in suite:
        check_densities(suite)
    if "dtypes" in suite:
        check_dtypes(suite.dtypes)
    if "tokens" in suite:
        check_tokens(suite.tokens)
    flags = suite.get("activation_checkpointing", [True])
    if not flags or any(not isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f"suite.activation_checkpointing={flags} is not a list of true and false; set "
            "suite.activation_checkpointing=[false]"
        )
    for key in ("methods", "jobs"):
        if key in suite:
            check_labels(key, suite, search)


def check_axes(suite: DictConfig, shape: DictConfig) -> None:
    """The sizes of an axis are two at least, rising; heads of the shape's width fill each width."""
    if "hidden" not in suite:
        return
    for key in ("hidden", "blocks", "seqlen", "samples"):
        _check_sizes(f"suite.{key}", suite[key], least=2 if key == "seqlen" else 1)
    for hidden in suite.hidden:
        if any(hidden * shape[heads] % shape.hidden for heads in ("heads", "key_value_heads")):
            step = shape.hidden // math.gcd(shape.hidden, shape.heads, shape.key_value_heads)
            raise ValueError(
                f"suite.hidden has {hidden}, which heads of the width of shape={shape.hidden} / "
                f"{shape.heads} do not fill; give multiples of {step}"
            )


def _check_sizes(key: str, sizes: Any, *, least: int) -> None:
    listed = list(sizes) if isinstance(sizes, ListConfig) else []
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= least for s in listed)
    if not whole or len(listed) < 2 or listed != sorted(set(listed)):
        raise ValueError(
            f"{key}={sizes} are not two or more rising integers of at least {least}; for example "
            f"{key}=[{least},{2 * least}]"
        )


def check_labels(key: str, suite: DictConfig, search: list[str]) -> None:
    """`only`, `at_step` and `baseline` name labels of `key`; each label used can be composed."""
    choices = suite[key]
    if not choices:
        raise ValueError(f"suite.{key} is empty; add one, for example +suite.{key}.LABEL=...")
    if suite.only is not None and (not isinstance(suite.only, ListConfig) or not suite.only):
        raise ValueError(
            f"suite.only={suite.only} is not a list of labels; for example "
            f"suite.only=[{next(iter(choices))}], or null for all"
        )
    _check_label("suite.at_step", suite.get("at_step", {}), choices)
    used = list(choices if suite.only is None else suite.only)
    _check_label("suite.only", used, choices)
    if "baseline" in suite:
        _check_label("suite.baseline", [suite.baseline], choices)
        used = [suite.baseline, *used]
    for label in used:
        compose_section(f"suite.{key}.{label}", choices[label], search)


def check_densities(suite: DictConfig) -> None:
    """Densities are a list of fractions in (0, 1]."""
    densities = suite.densities
    valid = isinstance(densities, ListConfig) and densities
    if not valid or any(not isinstance(d, int | float) or not 0 < d <= 1 for d in densities):
        raise ValueError(
            f"suite.densities={densities} is not a list of fractions in (0, 1]; for example "
            "suite.densities=[0.5,0.2]"
        )


def check_lengths(suite: DictConfig) -> None:
    """The lengths of examples can be drawn, and a step has its windows."""
    if not isinstance(suite.spread, int | float) or not 0 <= suite.spread < math.inf:
        raise ValueError(f"suite.spread={suite.spread} is not in [0, inf); set suite.spread=0.6")
    if suite.windows > suite.examples:
        raise ValueError(
            f"suite.windows={suite.windows} is above suite.examples={suite.examples}; set "
            f"suite.windows={suite.examples}"
        )


def check_dtypes(dtypes: Any) -> None:
    """Dtypes are a list of names."""
    if not isinstance(dtypes, ListConfig) or not dtypes or not {*dtypes} <= {*DTYPE_NAMES}:
        raise ValueError(
            f"suite.dtypes={dtypes} is not a list of {', '.join(DTYPE_NAMES)}; for example "
            "suite.dtypes=[bfloat16]"
        )


def check_clock(clock: Any, threads: int | None) -> None:
    """The clock is that of the wall, or of the processor, which counts one thread."""
    if clock not in ("wall", "cpu"):
        raise ValueError(f"suite.clock={clock} is not wall or cpu; set suite.clock=wall")
    if clock == "cpu" and threads != 1:
        raise ValueError(
            f"suite.clock=cpu counts the time of one thread, and threads={threads}; set threads=1"
        )


def check_steps(cfg: DictConfig) -> None:
    """Lengths are a list of token counts; packed linears live on a CPU, in two dtypes."""
    lengths = cfg.suite.lengths
    valid = isinstance(lengths, ListConfig) and lengths
    if not valid or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in lengths):
        raise ValueError(
            f"suite.lengths={lengths} is not a list of integers of at least 1; for example "
            "suite.lengths=[1,128]"
        )
    if cfg.device != "cpu" or cfg.dtype == "float16":
        raise ValueError(
            f"device={cfg.device} dtype={cfg.dtype}: packed linears multiply float32 and bfloat16 "
            "on a CPU; set device=cpu dtype=bfloat16"
        )


def check_tokens(pairs: Any) -> None:
    """The pairs are a list of (batch, length), length at least 2: one token predicts no other."""
    if not isinstance(pairs, ListConfig) or not pairs or not all(map(_is_micro_batch, pairs)):
        raise ValueError(
            f"suite.tokens={pairs} is not a list of [batch, length] with batch at least 1 and "
            "length at least 2; for example suite.tokens=[[2,512]]"
        )


def _is_micro_batch(pair: Any) -> bool:
    if not isinstance(pair, ListConfig) or len(pair) != 2:
        return False
    batch, length = pair
    return isinstance(batch, int) and isinstance(length, int) and batch >= 1 and length >= 2


def _check_label(key: str, labels: Iterable[str], choices: DictConfig) -> None:
    for label in labels:
        if label not in choices:
            close = difflib.get_close_matches(str(label), [str(name) for name in choices])
            nearest = f"; nearest: {', '.join(close)}" if close else ""
            raise ValueError(
                f"{key} names {label!r}, which is none of: {', '.join(map(str, choices))}{nearest}"
            )


def _check_count(key: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}={value} is not an integer of at least {least}; set {key}={least}")
