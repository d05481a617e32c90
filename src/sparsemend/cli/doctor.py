"""The command `sparsemend-doctor OVERRIDES`: whether the run of this command line can work here.

Exit codes: 0 go, 1 no-go (or a refused value), 2 unknown (or an unknown name).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sparsemend.cli.command import stopped_in_one_line
from sparsemend.cli.version import ShowVersion
from sparsemend.config.compose import compose_command, search_folders, search_lines
from sparsemend.doctor.report import show
from sparsemend.errors import USER_ERRORS, OverrideError
from sparsemend.files import write_json
from sparsemend.preflight.declared import check_declared
from sparsemend.terminal import CELLS_WIDTH, console, say

COMMAND = "sparsemend-doctor"
ONE_RUN = "the doctor examines one run: leave -m out, and give each key one value"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = _parser().parse_intermixed_args(arguments)
    try:
        with stopped_in_one_line():
            sys.exit(_examine(args))
    except OverrideError as error:
        say(str(error))
        sys.exit(2)
    except (*USER_ERRORS, OmegaConfBaseException) as error:
        say(str(error))
        sys.exit(1)


def _examine(args: argparse.Namespace) -> int:
    extra = Path(args.config_dir) if args.config_dir else None
    if args.multirun or _varies(args.overrides):
        raise OverrideError(ONE_RUN)
    # names are those of the command that carries out the run, whose help an error points to
    composed = compose_command(args.overrides, extra=extra)
    if composed.sweep or composed.configs[0].get("search") is not None:
        raise OverrideError(ONE_RUN)
    (cfg,) = composed.configs
    check_declared(cfg, search_folders(search_lines(args.overrides, extra)))
    if args.device_gb is not None and cfg.hardware.get("accelerator") != "gpu":
        raise ValueError(
            f"--device-gb {args.device_gb:g} is memory of a GPU, which hardware.accelerator="
            f"{cfg.hardware.get('accelerator')} does not use; add hardware=gpu, or give --host-gb"
        )
    from sparsemend.doctor.doctor import examine

    report = examine(
        cfg,
        args.overrides,
        composed.folder or Path("multirun"),
        device_gb=args.device_gb,
        host_gb=args.host_gb,
        timed=args.seconds,
    )
    show(report, console(CELLS_WIDTH))
    if args.json is not None:
        write_json(args.json, report.to_json())
    return report.verdict.exit_code


def _varies(lines: list[str]) -> bool:
    """Whether an override gives a key several values."""
    try:
        overrides = OverridesParser.create().parse_overrides(lines)
    except HydraException:
        return False  # which composing answers
    return any(override.is_sweep_override() for override in overrides)


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
    parser.add_argument(
        "--seconds",
        action="store_true",
        help="also carry out runs of one and two blocks with random weights, and estimate from "
        "them how long each stage takes here",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--config-dir", help="a folder of yaml files of your own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there too")
    parser.add_argument(
        "--device-gb",
        type=_gigabytes,
        help="free GB of a GPU to take for granted (elsewhere)",
    )
    parser.add_argument("--host-gb", type=_gigabytes, help="free GB of memory to take for granted")
    return parser


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of GB above 0; give for example 24")
    return value


if __name__ == "__main__":
    main()
