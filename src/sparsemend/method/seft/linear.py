"""The layer of SEFT: a delta linear whose support follows its deltas.

    S = M + grown slots,   effective weight W + d on S

M is the support of the base W, which only shrinks; a slot lies on the base, has grown at a position
that was pruned, or is dead: its position was pruned under it, its value is 0 and does not train.
`keep` is S, so that a grown position counts from the moment it is allocated, while still 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsemend.method.adapter.delta.linear import DeltaLinear
from sparsemend.sparse.drop_and_grow import Move
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.packing import pack, unpack

DEAD, ON_BASE, GROWN = 0, 1, 2


class SeftLinear(DeltaLinear):
    """W + d on `keep`; states (k,) uint8 of DEAD, ON_BASE, GROWN.

    starting_keep is the packed support at the start.  spare (O, I) is the starting weight where
    pruned base weights may come back, else None.

    A checkpoint holds no base: it is the starting weight on M, which a loaded support and its slots
    say.  For that the layer remembers what it has pruned, few weights beside the base.
    """

    holds_support = True
    first_keep = "starting_keep"
    moving: tuple[str, ...] = ("packed_keep", *DeltaLinear.moving, "states")

    states: Tensor
    starting_keep: Tensor
    spare: Tensor | None

    def __init__(
        self,
        base: SparseLinear,
        positions: Tensor,
        kernel: str,
        *,
        growth: str,
        untouched_candidates: bool,
        refill: bool,
        rewrites_base: bool,
    ) -> None:
        """growth: `all` or `active`; untouched_candidates: deltas are not growth candidates.

        refill: keep a copy of the starting weight.  rewrites_base: rounds move values into the
        base, which checkpoints then hold.
        """
        super().__init__(base, positions, kernel)
        self.growth, self.untouched_candidates = growth, untouched_candidates
        if rewrites_base:
            self.moving = (*self.moving, "weight")
        self._pruned: list[tuple[Tensor, Tensor]] = []  # (flat positions, weights), on the host
        keep = self.keep.contiguous()
        self.register_buffer("starting_keep", self.packed_keep.clone(), persistent=False)
        self.register_buffer("spare", self.weight.detach().clone() if refill else None, False)
        flat = keep.view(-1)
        on_base = flat[self.indices.long()]
        self.register_buffer("states", torch.where(on_base, ON_BASE, GROWN).to(torch.uint8))
        flat[self.indices.long()] = True
        self._allocate_(keep)

    @property
    def budget(self) -> int:
        """The number of weights that may be allocated after a round."""
        return self.starting_count

    @property
    def training_slots(self) -> Tensor:
        return self.states

    @property
    def alive(self) -> Tensor:
        """Which slots hold a delta, bool (k,)."""
        return self.states != DEAD

    @property
    def base_keep(self) -> Tensor:
        """M, bool (O, I)."""
        keep = self.keep.contiguous()
        keep.view(-1)[self.indices[self.states == GROWN].long()] = False
        return keep

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        super().set_effective_(weight, keep)
        self._pruned.clear()
        kept = self.keep.reshape(-1)[self.indices.long()]
        self.states.copy_(torch.where(kept, ON_BASE, DEAD))

    @torch.no_grad()
    def fold_in_(self) -> None:
        """Move every delta into the base: W := W + d, values 0, the effective weight as it was."""
        self.set_effective_(self.effective_weight(), self.keep)

    def growable(self) -> Tensor | None:
        """Where deltas may grow, bool (O, I); None: everywhere."""
        if self.growth == "all" and not self.untouched_candidates:
            return None
        places = self.base_keep if self.growth == "active" else torch.ones_like(self.keep)
        if self.untouched_candidates:
            places.view(-1)[self.indices[self.alive].long()] = False
        return places

    def prunable(self) -> Tensor:
        """Where adaptation may prune or refill, bool (O, I), also under deltas, which may move."""
        return self.keep | self.refillable() if self.spare is not None else self.keep

    def refillable(self) -> Tensor:
        """Where a base weight was pruned while training and nothing has grown, bool (O, I)."""
        return unpack(self.starting_keep, self.in_features) & ~self.keep

    @torch.no_grad()
    def replace_(self, move: Move, *, release: bool = True) -> Tensor:
        """Carry out `move` with values 0; return the slots that are now new growth.

        With `release` a grown slot frees the position it leaves; without, the position stays
        allocated and keeps the value, or its group of a pattern would hold a weight of 0.  A dead
        slot whose own position was chosen again is new growth too.
        """
        revived = move.returning[self.states[move.returning] == DEAD]
        grown = torch.cat([move.slots, revived])
        keep = self.keep.contiguous()
        flat = keep.view(-1)
        left = move.slots[self.states[move.slots] == GROWN]
        leaving = self.indices[left].long()
        if release:
            flat[leaving] = False
        else:
            row, column = leaving // self.in_features, leaving % self.in_features
            self.weight[row, column] = self.values[left].to(self.weight.dtype)
        super().replace_(move)
        places = self.indices[grown].long()
        self.states[grown] = torch.where(flat[places], ON_BASE, GROWN).to(torch.uint8)
        flat[places] = True
        self._allocate_(keep)
        return grown

    @torch.no_grad()
    def sort_(self) -> Tensor:
        order = super().sort_()
        self.states.copy_(self.states[order])
        return order

    @torch.no_grad()
    def prune_(self, positions: Tensor) -> Tensor:
        """Zero flat `positions` for good, off the support too; return the slots that die."""
        keep = self.keep.contiguous()
        gone = torch.zeros_like(keep)
        gone.view(-1)[positions] = True
        if self.spare is None and "weight" not in self.moving:
            based = positions[self.base_keep.view(-1)[positions]]
            self._pruned.append((based.cpu(), self.weight.view(-1)[based].cpu()))
        self._allocate_(keep & ~gone)
        self.weight.masked_fill_(gone, 0)
        died = (gone.view(-1)[self.indices.long()] & self.alive).nonzero().view(-1)
        self.values[died] = 0
        self.states[died] = DEAD
        return died

    @torch.no_grad()
    def refill_(self, positions: Tensor) -> Tensor:
        """Give flat `positions` their starting base weights again; return the slots that revive."""
        assert self.spare is not None
        keep = self.keep.contiguous()
        back = torch.zeros_like(keep)
        back.view(-1)[positions] = True
        self._allocate_(keep | back)
        self.weight.copy_(torch.where(back, self.spare, self.weight))
        revived = back.view(-1)[self.indices.long()].nonzero().view(-1)
        self.states[revived] = ON_BASE
        return revived

    @torch.no_grad()
    def follow_support_(self) -> None:
        """Make the base the starting weight on M, whatever was pruned since or before."""
        start = self._starting_weight()
        keep = self.base_keep
        if self.spare is None:
            gone = unpack(self.starting_keep, self.in_features) & ~keep
            positions = gone.view(-1).nonzero().view(-1)
            self._pruned = [(positions.cpu(), start.view(-1)[positions].cpu())]
        self.weight.copy_(torch.where(keep, start, 0))

    def _starting_weight(self) -> Tensor:
        """The weight (O, I) before training."""
        if self.spare is not None:
            return self.spare
        start = self.weight.detach().clone()
        for positions, weights in self._pruned:
            start.view(-1)[positions.to(start.device)] = weights.to(start.device)
        return start

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}states" in state_dict and f"{prefix}weight" not in state_dict:
            self.follow_support_()

    def _allocate_(self, keep: Tensor) -> None:
        self.packed_keep.copy_(pack(keep))
