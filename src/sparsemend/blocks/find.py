"""Find the decoder blocks of a model and the linears inside them."""

from __future__ import annotations

from torch import nn

LEFT_DENSE = "left_dense"  # an attribute of the linears that `choice.choose_` leaves dense


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
    """Raise ValueError where blocks hold no nn.Linear, or fused 3-D expert weights."""
    _, blocks = find_blocks(model)
    for block in blocks:
        fused = [
            name
            for module in block.modules()
            if not isinstance(module, nn.Conv1d | nn.Conv2d)
            for name, p in module.named_parameters(recurse=False)
            if p.ndim > 2
        ]
        if fused:
            raise ValueError(
                f"{type(model).__name__} holds fused {fused[0]} (mixture of experts), which is no "
                "nn.Linear; such models are not supported"
            )
    if not any(linears_of(block) for block in blocks):
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear inside its blocks; there is nothing to prune"
        )
