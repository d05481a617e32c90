"""The command `sparsemend-doctor OVERRIDES`: whether the run of this command line can work here.

Exit codes: 0 go, 1 no-go (or a refused value), 2 unknown (or an unknown name).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsemend.cli.command import exit_interrupted
from sparsemend.cli.version import ShowVersion
from sparsemend.config.compose import compose_command, search_folders, search_lines
from sparsemend.doctor.report import show
from sparsemend.errors import USER_ERRORS, OverrideError
from sparsemend.files import write_json
from sparsemend.preflight.declared import check_declared
from sparsemend.terminal import CELLS_WIDTH, console, say

COMMAND = "sparsemend-doctor"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = _parser().parse_args(arguments)
    try:
        sys.exit(_examine(args))
    except OverrideError as error:
        say(str(error))
        sys.exit(2)
    except USER_ERRORS as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        exit_interrupted("")


def _examine(args: argparse.Namespace) -> int:
    extra = Path(args.config_dir) if args.config_dir else None
    composed = compose_command(args.overrides, command=COMMAND, extra=extra)
    if composed.sweep:
        raise ValueError("the doctor examines one run; give each key one value")
    (cfg,) = composed.configs
    check_declared(cfg, search_folders(search_lines(args.overrides, extra)))
    from sparsemend.doctor.doctor import examine

    report = examine(
        cfg,
        args.overrides,
        Path("multirun"),
        device_gb=args.device_gb,
        host_gb=args.host_gb,
    )
    show(report, console(CELLS_WIDTH))
    if args.json is not None:
        write_json(args.json, report.to_json())
    return report.verdict.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        COMMAND,
        description="Say whether the run of these overrides can work here: memory by stage from a "
        "dry run without weights, disk, and what else it needs.  Exit code: 0 go, 1 no-go, "
        "2 unknown.",
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument(
        "overrides", nargs="*", help="as sparsemend takes them: model=... method=..."
    )
    parser.add_argument("--config-dir", help="a folder of yaml files of your own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there too")
    parser.add_argument(
        "--device-gb", type=_positive, help="free GB of a GPU to take for granted (another machine)"
    )
    parser.add_argument("--host-gb", type=_positive, help="free GB of memory to take for granted")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    main()
