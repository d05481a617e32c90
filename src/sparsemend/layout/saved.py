"""Supports under the names and in the shapes of the tensors that `save_pretrained` writes.

Between a linear of ours and a saved tensor lie two steps: `fold_`, and the conversion that
transformers undoes when it saves (Mixtral's experts are stacked at load and taken apart again).
Both only move values, so a support goes the way of its weight: as a tensor in the weight's place.
Which tensors are moved at all is seen on the meta device; those that are merely renamed, which
are all of them in most families, are not copied.  One block is on its way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.residency import visit_blocks
from sparsemend.layout.unfold import folded_tensors
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.mask_file import PackedMask, PackedMasks, SavedMasks
from sparsemend.sparse.packing import pack

# what is asked of a saved tensor, in one byte per weight
KEPT, MASKED, LINEAR, ODD_INPUT = 1, 2, 4, 8


@dataclass(frozen=True)
class BlockState:
    """One block's dense state on its way to the checkpoint.

    state: meta tensors by full name.  linears: of the block, by the full name of their weights.
    renamed: name by saved name, of the tensors that are not moved.  moved: the saved names of the
    others.
    """

    model: PreTrainedModel
    name: str
    block: nn.Module
    state: Mapping[str, Tensor]
    linears: Mapping[str, nn.Linear]
    renamed: Mapping[str, str]
    moved: tuple[str, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, name: str, block: nn.Module) -> BlockState:
        """The state of `block`, which `model` calls `name`."""
        inner = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        linears = {f"{name}.{n}.weight": linear for n, linear in inner.items()}
        dense = {f"{name}.{n}.{p}" for n in inner for p in ("weight", "bias")}
        state = {}
        for key, tensor in block.state_dict(prefix=f"{name}.").items():
            # of a sparse linear only what a dense one has: neither support nor adapter is saved
            if key in dense or not any(key.startswith(w.removesuffix("weight")) for w in linears):
                state[key] = torch.empty_like(tensor, device="meta")
        names = {id(tensor): key for key, tensor in state.items()}
        saved = _convert(model, name, block, state)
        renamed = {key: names[id(tensor)] for key, tensor in saved.items() if id(tensor) in names}
        moved = tuple(key for key in saved if key not in renamed)
        return cls(model, name, block, state, linears, renamed, moved)

    def saved_tensors(self) -> dict[str, Tensor]:
        """The tensors of the block, which is resident, as `save_pretrained` writes them."""
        tensors = self.block.state_dict(prefix=f"{self.name}.")
        return _convert(self.model, self.name, self.block, {n: tensors[n] for n in self.state})

    def send(self, fill: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """The saved tensors that are moved, with `fill(name, meta tensor)` in place of weights."""
        whole = set(self.renamed.values())
        if whole == self.state.keys():
            return {}
        filled = {n: like if n in whole else fill(n, like) for n, like in self.state.items()}
        saved = _convert(self.model, self.name, self.block, filled)
        return {n: tensor for n, tensor in saved.items() if n not in self.renamed}


def _convert(
    model: PreTrainedModel, name: str, block: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one block, by full name, as `save_pretrained` would write them."""
    inner = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()}
    folded = {f"{name}.{key}": tensor for key, tensor in folded_tensors(block, inner).items()}
    saved: dict[str, Tensor] = revert_weight_conversion(model, folded)
    return saved


def block_states(model: PreTrainedModel) -> Iterator[BlockState]:
    """The state of every decoder block, in their order."""
    prefix, blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        yield BlockState.of(model, f"{prefix}.{index}", block)


def saved_masks(model: PreTrainedModel) -> Iterator[SavedMasks]:
    """The supports of each block's sparse linears, the block's own to be gone with the next.

    A part of a saved tensor that has none is all kept.
    """
    for state, _ in zip(block_states(model), visit_blocks(model), strict=True):
        yield _masks_of(state)


@torch.no_grad()
def _masks_of(state: BlockState) -> SavedMasks:
    masks, dense = {}, []
    for saved, name in state.renamed.items():
        linear = state.linears.get(name)
        if isinstance(linear, SparseLinear):
            masks[key_of(saved)] = PackedMask(linear.packed_keep, linear.weight.shape, 1)
        elif linear is not None:
            dense.append(key_of(saved))
    for saved, code in _codes(state).items():
        if (code & MASKED).any():
            axis = _input_axis(code)
            keep = ((code & KEPT) != 0).movedim(axis, -1)
            masks[key_of(saved)] = PackedMask(pack(keep), code.shape, axis)
        elif (code & LINEAR).any():
            dense.append(key_of(saved))
    return SavedMasks(masks, dense)


def _codes(state: BlockState) -> dict[str, Tensor]:
    """Bytes that say what every weight of the saved tensors is, where tensors are moved."""
    return state.send(lambda name, like: _code(state.linears.get(name), like))


def _code(linear: nn.Linear | None, like: Tensor) -> Tensor:
    """Bytes in the place of a tensor of the shape of `like`, the weight of `linear` or another."""
    if linear is None:
        return torch.full(like.shape, KEPT, dtype=torch.uint8)
    code = torch.full(like.shape, KEPT | LINEAR, dtype=torch.uint8)
    if isinstance(linear, SparseLinear):
        code -= (~linear.keep).to(device="cpu", dtype=torch.uint8)  # KEPT is the lowest bit
        code |= MASKED
    code[:, 1::2] |= ODD_INPUT
    return code


def _input_axis(code: Tensor) -> int:
    """The axis of a saved tensor along which inputs are counted, the last where none is."""
    odd = code & ODD_INPUT
    for axis in range(code.ndim):
        if code.shape[axis] > 1 and (odd.select(axis, 0) != odd.select(axis, 1)).any():
            return axis
    return code.ndim - 1


@torch.no_grad()
def module_supports(model: PreTrainedModel, saved: Mapping[str, Tensor]) -> PackedMasks:
    """The supports, bool (O, I), of the linears of `model` that `saved` has, by linear name.

    saved: bool in the shape of the saved tensor, by its name without a final `.weight`; files once
    had the names of the linears, which are taken too.  A name that is neither is handed through.
    Raises ValueError where a shape is not that of the saved tensor.
    """
    masks, read = PackedMasks.of(saved), set[str]()
    supports: dict[str, PackedMask] = {}
    for state in block_states(model):
        for name, weight in state.renamed.items():
            if key_of(name) in masks and weight in state.linears:
                supports[key_of(weight)] = masks.packed[key_of(name)]
                read.add(key_of(name))
        moved = _moved_back(state, masks, read)
        supports |= {name: PackedMask.of(keep) for name, keep in moved.items()}
    rest = {name: mask for name, mask in masks.packed.items() if name not in read}
    prunable = prunable_linears(model)
    if rest and masks.keys() <= prunable.keys():
        return masks
    # a linear that is to stay dense may be a whole part of a tensor whose other parts are not
    some = {n: m for n, m in supports.items() if n in prunable or not m.unpack().all()}
    return PackedMasks(some | rest)


def _moved_back(
    state: BlockState, saved: Mapping[str, Tensor], read: set[str]
) -> dict[str, Tensor]:
    """The supports of a block's linears that lie elsewhere in the checkpoint.

    Every weight is sent there as its number in the block, so each bit knows whence it came.
    """
    starts, total = {}, 0
    for name, linear in state.linears.items():
        starts[name] = total
        total += linear.weight.numel()
    dtype = torch.int32 if total < 2**31 else torch.int64

    def number(name: str, like: Tensor) -> Tensor:
        if name not in starts:
            return torch.full(like.shape, -1, dtype=dtype)
        count = like.numel()
        return torch.arange(starts[name], starts[name] + count, dtype=dtype).view(like.shape)

    keep, covered = torch.ones(total, dtype=torch.bool), torch.zeros(total, dtype=torch.bool)
    for name, numbers in state.send(number).items():
        support = saved.get(key_of(name))
        if support is None:
            continue
        if support.shape != numbers.shape:
            raise ValueError(
                f"the masks file gives {name} the shape {tuple(support.shape)}, and this model "
                f"saves it as {tuple(numbers.shape)}; they do not belong together"
            )
        read.add(key_of(name))
        places = numbers.flatten().long()
        of_linear = places >= 0
        keep[places[of_linear]] = support.flatten()[of_linear]
        covered[places[of_linear]] = True
    return {
        key_of(name): keep[start : start + linear.weight.numel()].view(linear.weight.shape)
        for name, linear in state.linears.items()
        if covered[(start := starts[name])]
    }


def key_of(name: str) -> str:
    """The name of a linear, in memory or saved, from that of its tensor."""
    return name.removesuffix(".weight")
