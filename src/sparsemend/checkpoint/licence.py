"""Find the name and the licence of the model that an exported model was made from.

A licence is read, never guessed: from the front matter of the base folder's README.md (for a hub
id, of the copy in the local cache), else from the first lines of its LICENSE file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from sparsemend.config.locations import EMBEDDED, is_local, resolve_path

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
# the title with which a licence text opens -> its identifier in front matter
TITLES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "bsd 2-clause": "bsd-2-clause",
    "llama 2 community license": "llama2",
    "meta llama 3 community license": "llama3",
    "llama 3.1 community license": "llama3.1",
    "llama 3.2 community license": "llama3.2",
    "gemma terms of use": "gemma",
    "creative commons zero": "cc0-1.0",
}
TITLE_LINES = 5


@dataclass(frozen=True)
class BaseModel:
    """The model that a run started from.

    name: hub id or folder name.  front_matter: its licence entries.  source: the file they are in.
    """

    name: str
    front_matter: Mapping[str, Any]
    source: str

    @property
    def licence(self) -> str:
        """The licence in words, for the card's table."""
        identifier = self.front_matter["license"]
        if identifier == UNKNOWN:
            return "unknown, see base model"
        name = self.front_matter.get("license_name")
        return f"{name or identifier} ({self.source})"


def base_model(model: Mapping[str, Any]) -> BaseModel:
    """The base model, with its licence, that the `model` section of a config was loaded from."""
    path = model.get("path")
    if path is None:  # random weights
        return BaseModel(str(model["name"]), {"license": UNKNOWN}, "")
    folder = Path(resolve_path(path)).expanduser()
    if folder.is_dir():
        return BaseModel(_name(model, folder), *_licence(folder))
    if is_local(path):
        return BaseModel(folder.name, {"license": UNKNOWN}, "")
    for file in ("README.md", "LICENSE", "config.json"):
        cached = try_to_load_from_cache(path, file, revision=model.get("revision"))
        if isinstance(cached, str):
            return BaseModel(path, *_licence(Path(cached).parent))
    return BaseModel(path, {"license": UNKNOWN}, "")


def _name(model: Mapping[str, Any], folder: Path) -> str:
    """The folder's name, or for an export of this package the model that it was made from."""
    if str(model["path"]).startswith(EMBEDDED):
        return str(model["name"])
    card = _card(folder)
    made_here = "sparsemend" in (card.get("tags") or []) and "base_model" in card
    return str(card["base_model"]) if made_here else folder.resolve().name


def _card(folder: Path) -> dict[str, Any]:
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    return front_matter(readme.read_text(encoding="utf-8", errors="replace"))


def _licence(folder: Path) -> tuple[dict[str, Any], str]:
    card = _card(folder)
    keys = ("license", "license_name", "license_link")
    if card.get("license"):
        return {key: card[key] for key in keys if card.get(key)}, "its model card"
    for path in sorted(folder.glob("LICEN[CS]E*")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        title = " ".join(lines[:TITLE_LINES]).lower()
        for start, identifier in TITLES.items():
            if start in title:
                return {"license": identifier}, f"its {path.name}"
        first_line = lines[0].strip() if lines else path.name
        return {"license": "other", "license_name": first_line}, f"its {path.name}"
    return {"license": UNKNOWN}, ""


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the two lines `---` that open a model card; {} if missing or unreadable."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return {}
    end = next(i for i, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        entries = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        log.warning("front matter of the base model's card is no YAML: %s", error)
        return {}
    return entries if isinstance(entries, dict) else {}
