"""What the early check of a member is given: the config and what its files say, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sparsemend.config.flags import says
from sparsemend.config.members import member_name

if TYPE_CHECKING:  # of rooms above this one
    from sparsemend.checkpoint.headers import TensorShape
    from sparsemend.checkpoint.model import Model
    from sparsemend.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run asks for; `section` is the member's own part of it, `key` its dotted key.

    linears: full name in the files -> (outputs, inputs) of every prunable linear, empty where no
    file on this machine says them (a model on the hub).
    """

    cfg: DictConfig
    pattern: Pattern
    model: Model
    linears: Mapping[str, TensorShape]
    key: str
    section: DictConfig

    @property
    def name(self) -> str:
        """The member's name."""
        return member_name(str(self.section["_target_"]))

    @property
    def renamed(self) -> bool:
        """Whether linears are called otherwise in memory: experts are, stacked or one by one."""
        return any("expert" in name or name.endswith("]") for name in self.linears)

    @property
    def pruned_already(self) -> bool:
        """Whether the checkpoint brings its support, so that the run prunes nothing itself."""
        return bool(says(self.cfg.pruner, "reads_support"))


def check_choices(
    section_key: str, section: Mapping[Any, Any], choices: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise ValueError naming the first key whose value is not one of its choices."""
    for key, values in choices.items():
        if section[key] not in values:
            listed = ", ".join(map(str, values))
            raise ValueError(f"{section_key}.{key}={section[key]} is not one of {listed}")
