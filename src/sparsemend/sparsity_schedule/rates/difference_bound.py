"""The bound of a search over ATP's common difference: b = 2 min(s, 1-s) / (L-1).

With a mixed pattern, whose N is at least 1, 1 - 1/M stands in the place of 1.

It follows from the sparsity and the model's L blocks (their sizes too, where those differ, see
`progression.bound`), so that a search proposes nothing illegal.
conf/search/atp_common_difference.yaml names it.  Free of torch, but for a model on the hub.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sparsemend.checkpoint.model import find_model
from sparsemend.checkpoint.prunable_shapes import prunable_shapes, weights_per_block
from sparsemend.config.prunable import PrunableNames
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates.progression import bound, check_difference

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class CommonDifference:
    """The largest common difference of a config's sparsity and model."""

    def __init__(self, cfg: DictConfig, *, blocks: int | None) -> None:
        """blocks: L of blocks of equal size; None for what the model's files say of its blocks.

        Raises ValueError where the sparsity or the model leaves no difference to choose, and on a
        number of blocks that the model's files contradict.
        """
        self.most = Pattern.parse(cfg.pattern).largest_rate
        _check_sparsity(cfg.sparsity, self.most)
        self.sparsity = float(cfg.sparsity)
        self.weights = _weights_of(cfg) if blocks is None else _checked_blocks(cfg, blocks)
        self.limit = bound(self.sparsity, len(self.weights), self.weights, most=self.most)
        if math.isinf(self.limit):
            raise ValueError("a model of one block has no common difference to search")

    def check(self, value: float) -> None:
        """Raise ValueError where a difference takes a rate beyond what a block may have."""
        check_difference(value, self.sparsity, len(self.weights), self.weights, most=self.most)


def _check_sparsity(sparsity: Any, most: float) -> None:
    if not isinstance(sparsity, int | float) or not 0 < sparsity < most:
        raise ValueError(
            f"sparsity {sparsity} leaves no room for rates that differ; give one in (0, {most:g})"
        )


def _checked_blocks(cfg: DictConfig, blocks: Any) -> list[int]:
    """What the files of a model at hand say of its blocks, else so many of equal size."""
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
        raise ValueError(f"search.bound.blocks={blocks} is not an integer of at least 1")
    model = find_model(cfg.model)
    if model.config is None or model.config.blocks is None:
        return [1] * blocks
    weights = _weights_of(cfg)
    if len(weights) != blocks:
        raise ValueError(
            f"search.bound.blocks={blocks}, but {model.path} has {len(weights)} blocks to prune; "
            "leave it out, it is for models whose files are out of reach"
        )
    return weights


def _weights_of(cfg: DictConfig) -> list[int]:
    """Prunable weights per block, by the headers of the checkpoint.

    A model on the hub is built of its config.json without weights (the run would fetch that
    anyway); other models without headers get blocks of equal size, and so do those of which headers
    do not say what the patterns of `prunable` match.
    """
    model = find_model(cfg.model)
    if model.blocks:
        config = model.config.values if model.config is not None else {}
        if linears := prunable_shapes(cfg, model.blocks, config):
            return weights_per_block(linears)
    if model.config is None:
        return _hub_weights(cfg)
    if model.config.blocks is None:
        raise ValueError(
            f"the config of {model.path} does not state its number of blocks; "
            "give search.bound.blocks=L"
        )
    return [1] * model.config.blocks


def _hub_weights(cfg: DictConfig) -> list[int]:
    settings, prunable = cfg.model, PrunableNames.of(cfg)
    from transformers import AutoConfig

    trust = bool(settings.get("trust_remote_code"))  # None would ask on stdin
    try:
        config = AutoConfig.from_pretrained(
            settings.path, revision=settings.get("revision"), trust_remote_code=trust
        )
        return weights_of_config(config, prunable, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the blocks of {settings.path} are out of reach, so the bound of the search is "
            f"unknown; give search.bound.blocks=L ({str(error).splitlines()[0]})"
        ) from error


def weights_of_config(
    config: PreTrainedConfig, prunable: PrunableNames, *, trust_remote_code: bool = False
) -> list[int]:
    """Prunable weights per block of the model that a config describes, built on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    from sparsemend.blocks.find import prunable_linears
    from sparsemend.blocks.names import saved_name
    from sparsemend.layout.names import name_linears_
    from sparsemend.layout.unfold import unfold_

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    unfold_(model)
    name_linears_(model)
    shapes = {name: tuple(m.weight.shape) for name, m in prunable_linears(model).items()}
    allowed = {n: s for n, s in shapes.items() if prunable.allow(n, saved_name(model, n))}
    return weights_per_block(allowed)
