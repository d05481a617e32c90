"""Read result.json of a run folder and tell whether its process still runs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemend.names import RESULT


def read_result(folder: Path) -> dict[str, Any] | None:
    """result.json of a run folder, None where it is missing or cannot be read."""
    try:
        return load_result(folder / RESULT)
    except (OSError, ValueError):
        return None


def load_result(path: Path) -> dict[str, Any]:
    """The content of a result.json; raises OSError or ValueError where it cannot be read."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def process_here(content: Mapping[str, Any]) -> bool:
    """Whether this very process wrote the result."""
    process = content.get("process", {})
    return bool(process == {"host": platform.node(), "pid": os.getpid()})


def alive(content: Mapping[str, Any]) -> bool:
    """Whether a run noted as running may still run, in another process or on another machine."""
    process = content.get("process", {})
    if content.get("status") != "running":
        return False
    if process.get("host") != platform.node():
        return True  # cannot be seen from here; resume it by naming its folder
    if process["pid"] == os.getpid():
        return False
    try:
        os.kill(process["pid"], 0)
    except PermissionError:
        return True  # another user's; where it only took the number over, resume by folder
    except (OSError, OverflowError):
        return False
    return not _is_zombie(process["pid"])


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice (Linux)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")  # the name before it may hold blanks
