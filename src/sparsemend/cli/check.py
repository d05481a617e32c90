"""The command `sparsemend-check`: count the zeros of a checkpoint and compare it with its masks.

Reads any folder of safetensors (one file or shards), written by sparsemend or not, in seconds and
without loading the model.  Exit codes: 0 all holds, 1 a weight off the mask is not zero or the
pattern asked for does not hold (the tensor is named), or the folder was refused, 2 bad usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from sparsemend.checkpoint.bits import Support, pattern_of
from sparsemend.checkpoint.supports import MASKS, Checked, read_checkpoint
from sparsemend.cli.version import ShowVersion
from sparsemend.sparse.pattern import Pattern
from sparsemend.terminal import CELLS_WIDTH, console, say

FOLDED = 3  # equal rows of consecutive blocks that become one


def as_json(checked: Checked, failures: list[str]) -> dict[str, Any]:
    """The whole check as plain values under fixed keys."""
    return {
        "path": str(checked.path),
        "masks": str(checked.masks) if checked.masks else None,
        "holds": not failures,
        "failures": failures,
        "pattern": str(checked.pattern),
        "excluded": list(checked.excluded),
        "zeros": checked.zeros,
        "prunable_weights": checked.weights,
        "sparsity": checked.zeros / checked.weights,
        "sparsity_of_all_weights": checked.zeros / checked.all_weights,
        "stays_dense": {name: s.weights for name, s in checked.prunable.stays_dense.items()},
        "per_linear": {
            name: {
                "shape": list(support.shape),
                "input_axis": -1 if checked.prunable.linears[name].inputs_last else -2,
                "dtype": support.dtype,
                "zeros": support.zeros,
                "sparsity": support.sparsity,
                "pattern": str(pattern_of([support])),
                "non_zeros_off_mask": support.escaped,
                "zeros_on_mask": support.unused,
                "kept_whole": support.dense,
            }
            for name, support in checked.supports.items()
        },
        "seconds": round(checked.seconds, 3),
    }


def table(checked: Checked, *, linears: bool) -> Table:
    """A table with a row per decoder block, or per linear; mask columns only where masks exist."""
    rows = {name: [s] for name, s in checked.supports.items()} if linears else checked.blocks()
    summary = Table(title=str(checked.path), caption=f"masks: {checked.masks or 'none'}")
    summary.add_column("linear" if linears else "block")
    for column in ("weights", "sparsity", "pattern"):
        summary.add_column(column, justify="right")
    if checked.masks:
        summary.add_column("off mask, not 0", justify="right")
        summary.add_column("on mask, 0", justify="right")
    cells = {name: tuple(_cells(each, checked.masks is not None)) for name, each in rows.items()}
    for equal, shown in groupby(cells, key=lambda name: cells[name]):
        names = list(shown)
        for name in names if linears or len(names) < FOLDED else [_span(names)]:
            summary.add_row(name, *equal)
    summary.add_section()
    summary.add_row("total", *_cells(list(checked.supports.values()), checked.masks is not None))
    return summary


def _span(blocks: list[str]) -> str:
    """The name of a row for consecutive blocks: `model.layers.0 ... 29, each`."""
    return f"{blocks[0]} ... {blocks[-1].rpartition('.')[2]}, each"


def _cells(supports: list[Support], masked: bool) -> list[str]:
    weights = sum(support.weights for support in supports)
    zeros = sum(support.zeros for support in supports)
    pattern = str(pattern_of(supports)) if zeros else "dense"
    cells = [f"{weights:,}", f"{zeros / weights:.6f}", pattern]
    if masked:
        cells.append(f"{sum(support.escaped or 0 for support in supports):,}")
        cells.append(f"{sum(support.unused or 0 for support in supports):,}")
    return cells


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console command."""
    parser = argparse.ArgumentParser(
        "sparsemend-check",
        description="Count the zeros of a checkpoint, find its N:M pattern, and compare it with "
        "masks.safetensors.",
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument("path", type=Path, help="folder with safetensors, or one such file")
    parser.add_argument("--masks", type=Path, help=f"masks file; without: {MASKS} beside the model")
    parser.add_argument("--pattern", type=_pattern, help="N:M that must hold in every linear")
    parser.add_argument(
        "--linears",
        action="store_true",
        help="a row per linear; without: per block, equal blocks in one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, always per linear")
    args = parser.parse_args(arguments)
    asked = args.pattern
    try:
        checked = read_checkpoint(args.path, args.masks, asked)
    except (ValueError, OSError) as error:
        say(str(error))
        sys.exit(1)
    failures = checked.failures(asked)
    if args.json:
        print(json.dumps(as_json(checked, failures), indent=2))
    else:
        _print(checked, linears=args.linears)
    for line in failures:
        say(line)
    if failures:
        sys.exit(1)


def _pattern(text: str) -> Pattern:
    """An N:M pattern; argparse says why another text is none."""
    try:
        pattern = Pattern.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if pattern.unstructured or pattern.mixed:
        raise argparse.ArgumentTypeError(f"{pattern} forbids nothing; give N:M, for example 2:4")
    return pattern


def _print(checked: Checked, *, linears: bool) -> None:
    shown = console(CELLS_WIDTH)
    shown.print(table(checked, linears=linears))
    shown.print(
        f"{checked.zeros / checked.all_weights:.6f} of all {checked.all_weights:,} weights "
        f"are zeros of prunable linears; read in {checked.seconds:.2f} s",
        highlight=False,
    )
    for line in checked.remarks():
        shown.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
