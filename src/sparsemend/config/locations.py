"""The places of files that ship with the package, and what the place of a model calls it.

Free of torch: the command finds its configuration before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from sparsemend.config.gguf import PACKAGED, converted_folder, gguf_digest, gguf_file

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
    """The folder of a model's weights: of `embedded:NAME` inside this package, of a GGUF file the
    one that it is turned into.  Anything else is unchanged.
    """
    if path.startswith(EMBEDDED):
        return str(PACKAGE / "assets" / path.removeprefix(EMBEDDED))
    file = gguf_file(path)
    return path if file is None else str(converted_folder(file))


def model_name(path: str) -> str:
    """A model's name from its place: the last part, which for an export `model/` says nothing.

    `/data/llama-7b/` and `org/llama-7b` are llama-7b, `out/2026-11-28/0/model` is
    2026-11-28/0/model, a snapshot in the hub's cache is the repository.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    repositories = [part for part in parts if part.startswith("models--")]
    if repositories:
        return repositories[-1].rpartition("--")[2]
    if not parts or parts[-1] in ("..", "~"):
        return Path(path).expanduser().resolve().name
    return "/".join(parts[-3:]) if parts[-1] == "model" else parts[-1]


# before any config is composed: every command and every test finds the configs by this module
OmegaConf.register_resolver("model_name", model_name, replace=True)
OmegaConf.register_resolver("gguf_digest", gguf_digest, replace=True)


def is_local(path: str) -> bool:
    """Whether a name can only mean a place on this machine: hub ids are `name` or `org/name`."""
    return (
        path.startswith((EMBEDDED, PACKAGED, "/", ".", "~"))
        or path.endswith("/")
        or path.count("/") > 1
    )


def tilde_hint(path: str) -> str:
    """A reminder for the end of a message where `path` starts with ~, which shells keep after =."""
    return " (~ is not expanded here: write $HOME)" if path.startswith("~") else ""
