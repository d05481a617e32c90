"""Find the decoder blocks of a model and the linears inside them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.plain import multiplies

LEFT_DENSE = "left_dense"  # an attribute of the linears that `choice.choose_` leaves dense
NEVER_CALLED = "never_called"  # an attribute of the linears that `self_check` finds never called
SHARE_OUTSIDE = 0.05  # routers and state-space matrices have at most 2 % in published models
ELSEWHERE = (nn.Conv1d, nn.Conv2d, nn.Embedding)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder blocks, as seen from the model.

    They are the list of modules with the most parameters that the model's decoder holds itself
    (`get_decoder` of transformers: not a larger vision tower); where there is none, the one with
    the most parameters anywhere.  Raises ValueError when the model has no such list.
    """
    prefix, decoder = _decoder(model)
    everywhere = _lists(model.named_modules(), "")
    lists = everywhere
    if decoder is not None:
        lists = (
            _lists(decoder.named_children(), prefix)
            or _lists(decoder.named_modules(), prefix)
            or everywhere
        )
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks (nn.ModuleList)")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _decoder(model: nn.Module) -> tuple[str, nn.Module | None]:
    """(name with a dot, module) of the model's decoder; None where it names none."""
    get = getattr(model, "get_decoder", None)  # a method of transformers' models alone
    decoder = get() if callable(get) else None
    for name, module in model.named_modules():
        if module is decoder:
            return f"{name}." if name else "", module
    return "", None


def _lists(
    modules: Iterable[tuple[str, nn.Module]], prefix: str
) -> list[tuple[str, nn.ModuleList]]:
    return [(prefix + n, m) for n, m in modules if isinstance(m, nn.ModuleList) and len(m)]


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Every prunable linear inside one block, by its name in the block, in module order.

    What only inherits from nn.Linear is none: a router of experts, or a linear of packed numbers.
    """
    linears = ((name, m) for name, m in block.named_modules() if multiplies(m))
    return {name: linear for name, linear in linears if LEFT_DENSE not in vars(linear)}


def prunable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every prunable linear of the decoder blocks, by full name (the head is outside)."""
    prefix, blocks = find_blocks(model)
    return {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in linears_of(block).items()
    }


def block_index(name: str, prefix: str) -> int:
    """Index of the block that a full linear name lies in; `prefix` names the block list."""
    return int(name[len(prefix) + 1 :].split(".")[0])


def called_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The prunable linears but for those that the self-check of the walk found never called."""
    return {n: m for n, m in prunable_linears(model).items() if not is_never_called(m)}


def is_never_called(linear: nn.Linear) -> bool:
    """Whether the self-check of the walk found that the model never calls this linear."""
    return NEVER_CALLED in vars(linear)


def check_blocks(model: nn.Module) -> None:
    """Raise ValueError where blocks hold no linear, share one, or hold too many weights elsewhere.

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
    owners: dict[int, str] = {}
    for name, linear in prunable_linears(model).items():
        owner = owners.setdefault(id(linear.weight), name)
        if owner != name:
            raise ValueError(
                f"{saved_name(model, owner)} and {saved_name(model, name)} of "
                f"{type(model).__name__} are one weight, which each of its "
                "blocks would prune anew; models whose blocks share weights are not supported"
            )


def _outside_linears(block: nn.Module) -> dict[str, int]:
    """Number of weights, by name, in matrices of no linear, convolution or embedding."""
    return {
        f"{path}.{name}".lstrip("."): parameter.numel()
        for path, module in block.named_modules()
        if not multiplies(module) and not isinstance(module, ELSEWHERE)
        for name, parameter in module.named_parameters(recurse=False)
        if sum(size > 1 for size in parameter.shape) > 1
    }


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
