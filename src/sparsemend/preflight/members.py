"""Call what the members of a run refuse early, ours and a user's own alike (`config.members`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.asked import Asked
from sparsemend.config.members import checks_of, targets

HOOKS = ("check", "without_effect", "needs_whole_model")  # what the file of early checks may define
LAST = ("pruner", "data")  # they read files to their end, so all else comes first


def check_members(asked: Asked) -> None:
    """Call `check` of every section's member; raises what they raise.

    A schedule is left out where the checkpoint brings its support: nothing asks it for rates.
    """
    sections = list(targets(asked.cfg))
    for key, target in sorted(sections, key=lambda entry: entry[0].partition(".")[0] in LAST):
        if key == "sparsity_schedule" and asked.pruned_already:
            continue
        check = _hook(target, "check")
        if check is not None:
            with _named_keys(target):
                check(replace(asked, key=key, section=OmegaConf.select(asked.cfg, key)))


def without_effect(section: DictConfig) -> set[str]:
    """The keys of a section whose values its member does not read under these settings."""
    target = str(section.get("_target_"))
    hook = _hook(target, "without_effect")
    with _named_keys(target):
        keys: set[str] = hook(section) if hook is not None else set()
    return keys


@contextmanager
def _named_keys(target: str) -> Iterator[None]:
    """Say in one line which key a section lacks."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key} is missing; {target} needs it, give a value") from error


def _hook(target: str, name: str) -> Any:
    """A function of a member's file of early checks; None without the file or the function."""
    module = checks_of(target)
    if module is None:
        return None
    if not any(hook in vars(module) for hook in HOOKS):
        raise ValueError(
            f"{module.__file__} defines none of {', '.join(HOOKS)}; give it "
            "def check(asked: Asked) -> None, or take it away"
        )
    return vars(module).get(name)
