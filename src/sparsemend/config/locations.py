"""The places of files that ship with the package: `conf/` and the embedded assets.

Free of torch: the command finds its configuration before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
EMBEDDED = "embedded:"


def conf_folder() -> Path:
    """The folder of run.yaml: inside an installed wheel, else at the top of the checkout."""
    candidates = [PACKAGE / "conf", PACKAGE.parents[1] / "conf"]
    for folder in candidates:
        if (folder / "run.yaml").is_file():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(f"no run.yaml in {looked}; reinstall sparsemend")


def resolve_path(path: str) -> str:
    """`embedded:NAME` as the folder inside this package; anything else unchanged."""
    if path.startswith(EMBEDDED):
        return str(PACKAGE / "assets" / path.removeprefix(EMBEDDED))
    return path


def is_local(path: str) -> bool:
    """Whether a name can only mean a place on this machine: hub ids are `name` or `org/name`."""
    return path.startswith((EMBEDDED, "/", ".", "~")) or path.endswith("/") or path.count("/") > 1


def tilde_hint(path: str) -> str:
    """A reminder for the end of a message where `path` starts with ~, which shells keep after =."""
    return " (~ is not expanded here: write $HOME)" if path.startswith("~") else ""
