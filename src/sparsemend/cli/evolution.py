"""`sparsemend-evolution RUN_FOLDER` draws how supports moved while a method trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparsemend.cli.version import ShowVersion
from sparsemend.table.evolution import PICTURE, draw, read_evolution


def main() -> None:
    """Entry point of the console command."""
    parser = argparse.ArgumentParser(prog="sparsemend-evolution", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    folder = parser.parse_args().folder
    try:
        evolution = read_evolution(folder)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    draw(evolution, folder / PICTURE)
    print(folder / PICTURE)
