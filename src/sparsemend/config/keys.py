"""What each top-level key of a composed config decides: one row per key of conf/run.yaml.

Whoever adds a key adds its row here, and every list of keys elsewhere follows.  The groups arena
and search, and the experiments of claims, add keys too (`@package _global_`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig


class Key(NamedTuple):
    """The columns of one key.

    changes_numbers: runs that differ in it are different runs (the config hash; `resume`).
    decides_pruned_bits: the pruned model differs with it (the cache of pruned models).
    tells_rows_apart: its knobs may tell two runs of one table row apart; False too where the row's
        name has it already.
    free_with_from_run: a command line with `from_run` may set it.
    always_from_command_line: with `from_run` its value never comes from the finished run.
    shared_by_arena_rows: all rows of one arena have the same value.
    """

    changes_numbers: bool
    decides_pruned_bits: bool
    tells_rows_apart: bool
    free_with_from_run: bool
    always_from_command_line: bool
    shared_by_arena_rows: bool


_yes, _no = True, False

# fmt: off
KEYS: Mapping[str, Key] = {
    #                         numbers pruned rows  free  always arena
    "model":             Key(_yes,   _yes,  _no,  _no,  _no,   _yes),
    "pruner":            Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "sparsity_schedule": Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "method":            Key(_yes,   _no,   _yes, _no,  _no,   _no),
    "evaluation":        Key(_yes,   _no,   _no,  _yes, _no,   _no),
    "data":              Key(_yes,   _yes,  _yes, _yes, _no,   _yes),
    "hardware":          Key(_yes,   _no,   _no,  _yes, _no,   _no),
    "logger":            Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "cache":             Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "sparsity":          Key(_yes,   _yes,  _no,  _no,  _no,   _yes),
    "pattern":           Key(_yes,   _yes,  _no,  _no,  _no,   _yes),
    "pattern_tail":      Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "rounding":          Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "statistics":        Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "true_sequential":   Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "prunable":          Key(_yes,   _yes,  _yes, _no,  _no,   _yes),
    "seed":              Key(_yes,   _yes,  _no,  _no,  _no,   _no),
    "export":            Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "export_dtype":      Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "export_push":       Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "export_private":    Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "export_form":       Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "export_values":     Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "resume":            Key(_no,    _no,   _no,  _no,  _yes,  _no),
    "from_run":          Key(_yes,   _no,   _yes, _no,  _yes,  _no),
    "name":              Key(_no,    _no,   _no,  _yes, _yes,  _no),
    "variant":           Key(_no,    _no,   _no,  _no,  _no,   _no),
    # of a debug run (its model and windows differ too), of an arena, a claim, a control, a search
    "debug":             Key(_yes,   _no,   _yes, _no,  _no,   _yes),
    "arena":             Key(_yes,   _no,   _no,  _no,  _no,   _no),
    "budget":            Key(_yes,   _no,   _no,  _no,  _no,   _yes),
    "claim":             Key(_no,    _no,   _no,  _no,  _no,   _no),
    "control":           Key(_no,    _no,   _no,  _no,  _no,   _no),
    "search":            Key(_no,    _no,   _no,  _no,  _no,   _no),
}
# fmt: on


def keys_that(column: str) -> tuple[str, ...]:
    """The keys with a yes in a column of `Key`, in the order of the rows."""
    return tuple(name for name, key in KEYS.items() if getattr(key, column))


def keys_that_do_not(column: str) -> tuple[str, ...]:
    """The keys with a no in a column of `Key`, in the order of the rows."""
    return tuple(name for name, key in KEYS.items() if not getattr(key, column))


def scalars(cfg: DictConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the keys whose value is no section."""
    return {key: cfg[key] for key in keys if not isinstance(cfg[key], DictConfig)}
