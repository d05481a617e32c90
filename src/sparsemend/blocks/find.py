"""Find the decoder blocks of a model and the linears inside them."""

from __future__ import annotations

from torch import nn

LEFT_DENSE = "left_dense"  # an attribute of the linears that `choice.choose_` leaves dense
SHARE_OUTSIDE = 0.05  # routers and state-space matrices have at most 2 % in published models
ELSEWHERE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder blocks: the ModuleList with the most parameters.

    Raises ValueError when the model has no such list.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks (nn.ModuleList)")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Every prunable nn.Linear inside one block, by its name in the block, in module order."""
    linears = ((name, m) for name, m in block.named_modules() if isinstance(m, nn.Linear))
    return {name: linear for name, linear in linears if LEFT_DENSE not in vars(linear)}


def prunable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every prunable nn.Linear of the decoder blocks, by full name (the head is outside)."""
    prefix, blocks = find_blocks(model)
    return {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in linears_of(block).items()
    }


def block_index(name: str, prefix: str) -> int:
    """Index of the block that a full linear name lies in; `prefix` names the block list."""
    return int(name[len(prefix) + 1 :].split(".")[0])


def check_prunable(model: nn.Module) -> None:
    """Raise ValueError where blocks hold no nn.Linear, or too many weights elsewhere.

    The weights of another module may be no more than SHARE_OUTSIDE of a block's: routers and the
    like, not what a sparsity is about.
    """
    _, blocks = find_blocks(model)
    for block in blocks:
        total = sum(p.numel() for p in block.parameters())
        outside = _outside_linears(block)
        if sum(outside.values()) > SHARE_OUTSIDE * total:
            name, weights = max(outside.items(), key=lambda item: item[1])
            raise ValueError(
                f"model type {_model_type(model)} keeps {sum(outside.values()) / total:.0%} of the "
                f"weights of a block where nn.Linear does not, most in {name} ({weights:,} of "
                f"{total:,}); weights of this form are not supported"
            )
    if not any(linears_of(block) for block in blocks):
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear inside its blocks; there is nothing to prune"
        )


def _outside_linears(block: nn.Module) -> dict[str, int]:
    """Number of weights, by name, in matrices of no linear, convolution or embedding."""
    return {
        f"{path}.{name}".lstrip("."): parameter.numel()
        for path, module in block.named_modules()
        if not isinstance(module, ELSEWHERE)
        for name, parameter in module.named_parameters(recurse=False)
        if sum(size > 1 for size in parameter.shape) > 1
    }


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
