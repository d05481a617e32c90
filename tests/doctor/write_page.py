"""The page of what was measured of the doctor, from the tables that the other scripts print.

    python tests/doctor/against_measured.py FOLDER > measured.md
    python tests/doctor/seconds_against_measured.py FOLDER > seconds.md
    python tests/doctor/estimates.py > estimates.md
    python tests/doctor/write_page.py measured.md seconds.md estimates.md > doctor.md

Every figure of the page is one of a table, or computed from those here.  A fourth file is a page
with a table of an earlier version of the first script; rows of runs that the first file lacks stand
by themselves.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import against_measured
import estimates
import seconds_against_measured

LIMIT = 15.0  # per cent, of memory
FACTOR = 1.5  # of seconds
PAGE = """# The doctor

## Peak memory against measured runs

The largest resident size of a run's stages above the imported process, on a CPU, and what
`sparsemend-doctor` says of it: a random model of two 7B-shaped blocks in fp32 (1.7 GB), torch
{torch}, Linux, one thread.  {memory}

```bash
python tests/doctor/against_measured.py FOLDER
```

{measured}

{missing}{earlier}

## Seconds against measured runs

`sparsemend-doctor --seconds` probes one and two blocks; here of a random model of eight blocks of
512 and 1408 in fp32, windows of 128 tokens, on one thread.  Both columns are seconds of processor
time of all stages but loading, the probe's and the run's right after it; `load` is the machine's
average of five minutes.  {seconds}

```bash
python tests/doctor/seconds_against_measured.py FOLDER
```

{timed}

## Estimates for models of 7B, 13B and 70B

**Nothing here was measured.**  LLaMA-2's shapes in bf16, `hardware=gpu_24gb`, 64 calibration
windows of 2048 tokens; what prunes or refines block by block with `hardware.stream=true`.  `go` is
for a card with 24 or 80 GB free, with what CUDA takes besides.

```bash
python tests/doctor/estimates.py
```

{estimated}
"""

EARLIER = """

Measured with an earlier version of that script (two steps, the file in fp32, whose pages count) and
of the doctor; {memory}

{measured}"""


def cells_of(table: str) -> list[list[str]]:
    """The cells of the rows below the heading."""
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def table_of(heading: str, rows: list[list[str]]) -> str:
    return "\n".join([heading, *(f"| {' | '.join(row)} |" for row in rows)])


def in_order(rows: list[list[str]], names: list[str]) -> list[list[str]]:
    """The last row of each name, in the order of the names."""
    last = {row[0]: row for row in rows}
    return [last[name] for name in names if name in last]


def of_memory(rows: list[list[str]]) -> str:
    differences = [float(row[-1].rstrip("%")) for row in rows]
    inside = sum(abs(difference) <= LIMIT for difference in differences)
    return (
        f"{inside} of {len(rows)} lie within {LIMIT:g} %; the differences go from "
        f"{min(differences):+.1f} to {max(differences):+.1f} %."
    )


def of_seconds(rows: list[list[str]]) -> str:
    ratios = [float(row[3]) for row in rows]
    inside = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)
    return f"{inside} of {len(rows)} lie within a factor of {FACTOR:g}."


def of_missing(names: list[str], rows: list[list[str]]) -> str:
    left = [name for name in names if name not in {row[0] for row in rows}]
    also = f"{', '.join(left)}, which the same command measures, and " if left else ""
    return f"Not measured yet: {also}anything on a GPU."


def page(measured: str, seconds: str, estimated: str, earlier: str = "") -> str:
    names = list(against_measured.RUNS)
    memory_rows = in_order(cells_of(measured), names)
    second_rows = in_order(cells_of(seconds), list(seconds_against_measured.RUNS))
    order = [(model, run) for model in estimates.SHAPES for run in estimates.RUNS]
    estimated_rows = {(row[0], row[1]): row for row in cells_of(estimated)}
    rows = [estimated_rows[key] for key in order if key in estimated_rows]
    fresh = {row[0] for row in memory_rows}
    old_rows = [row for row in in_order(cells_of(earlier), names) if row[0] not in fresh]
    old_table = table_of(
        "| run | doctor, GB | measured, GB | difference |\n|---|---:|---:|---:|", old_rows
    )
    return PAGE.format(
        torch=version("torch"),
        memory=of_memory(memory_rows),
        measured=table_of(against_measured.HEADING, memory_rows),
        missing=of_missing(names, [*memory_rows, *old_rows]),
        earlier=EARLIER.format(memory=of_memory(old_rows), measured=old_table) if old_rows else "",
        seconds=of_seconds(second_rows),
        timed=table_of(seconds_against_measured.HEADING, second_rows),
        estimated=table_of(estimates.HEADING, rows),
    )


if __name__ == "__main__":
    print(page(*(Path(name).read_text() for name in sys.argv[1:])), end="")
