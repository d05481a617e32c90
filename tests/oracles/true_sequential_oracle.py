"""True-sequential pruning (an option of GPTQ's code; Frantar et al., 2022, arXiv 2210.17323).

The blocks in order; inside one the groups of linears that the caller lists, in order: a full
forward of the model per calibration sequence, with hooks on the linears of one group, everything
before them already pruned.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]]


@torch.no_grad()
def prune_in_order(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    groups: Sequence[Sequence[str]],
    sequences: Tensor,
    rule: Rule,
) -> list[dict[str, Tensor]]:
    """Prune in place by rule(weight, inputs (T, I) per sequence) -> (weight, keep); return keeps.

    groups: names of linears as seen from a block; sequences: token ids (N, T).
    """
    keeps: list[dict[str, Tensor]] = []
    for block in blocks:
        keeps.append({})
        for group in groups:
            inputs = _inputs(model, {name: block.get_submodule(name) for name in group}, sequences)
            for name in group:
                linear = block.get_submodule(name)
                weight, keep = rule(linear.weight, inputs[name])
                linear.weight.copy_(weight)
                keeps[-1][name] = keep
    return keeps


def _inputs(
    model: nn.Module, linears: dict[str, nn.Module], sequences: Tensor
) -> dict[str, list[Tensor]]:
    """The inputs (T, I) of every linear, a tensor per sequence."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in linears}
    handles = [
        linear.register_forward_pre_hook(
            lambda m, args, n=name: inputs[n].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name, linear in linears.items()
    ]
    for sequence in sequences:
        model(input_ids=sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs
