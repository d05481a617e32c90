"""What W&B needs before any work, without importing it (no torch, no wandb)."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from sparsemend.config.asked import Asked

HOST = "https://api.wandb.ai"


def check(asked: Asked) -> None:
    """Raise ValueError unless an online run has a key, and this run will have the artifacts."""
    logger = asked.section
    if "model" in logger.artifacts and not asked.cfg.export:
        raise ValueError(
            "logger.wandb.artifacts holds model, but export=false writes none; set export=true"
        )
    if logger.mode == "online" and not has_key():
        raise ValueError(
            f"logger=wandb goes online, but there is no API key for {host()}: run `wandb login` or "
            "set WANDB_API_KEY; to go offline set logger.wandb.mode=offline (then `wandb sync` the "
            "run folder's wandb/ later), or use logger=csv"
        )


def has_key() -> bool:
    """Whether W&B finds credentials: in the environment or in the netrc file for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for place in places:
        path = Path(place).expanduser() if place else None
        if path is None or not path.is_file():
            continue
        try:
            credentials = netrc.netrc(path).authenticators(urlsplit(host()).netloc)
        except (netrc.NetrcParseError, OSError):
            return True  # cannot be read here; W&B says what is wrong with it
        return bool(credentials and credentials[2])
    return False


def host() -> str:
    """The W&B server: WANDB_BASE_URL, one of an earlier `wandb login --host`, or the public one."""
    settings = configparser.ConfigParser(interpolation=None)
    folder = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    try:
        settings.read(Path(folder).expanduser() / "settings")
    except configparser.Error:
        return HOST
    logged_in = settings.get("default", "base_url", fallback=HOST)
    return os.environ.get("WANDB_BASE_URL") or logged_in
