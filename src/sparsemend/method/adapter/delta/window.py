"""Windows: the few sums that are kept of a layer's weight-sized gradients before a round.

Growth: the positions of largest |gradient| in the first step, and the signed sum and the sum of
squares of the optimizer-step gradient there.  Sensitivity, where weights may be pruned: the root
mean square of the step's gradient, sqrt(mean_t g_t^2), or its mean.  In a mean the steps cancel, so
that a large weight with a small mean would rank as one that the loss does not need.  Each gradient
is read and freed.  Of several processes the whole gradient is averaged where it chooses positions,
once in a window, and from then on what is kept of it, once in a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsemend.method.adapter.low_rank import wider
from sparsemend.sparse.drop_and_grow import highest, lowest
from sparsemend.sparse.packing import pack, unpack
from sparsemend.training.collectives import average_over_ranks_, mean_over_ranks

SENSITIVITY_GRADIENTS = ("rms", "mean", "last", "candidates")
EVERYWHERE = ("rms", "mean")  # where weights may be pruned; the others follow a few positions
SQUARED = ("rms", "candidates")


class ObservedLayer(Protocol):
    """The layer as its window sees it."""

    indices: Tensor
    in_features: int

    def growable(self) -> Tensor | None:
        """Where deltas may grow, bool (O, I); None: everywhere."""

    def prunable(self) -> Tensor:
        """Where the sensitivity will be needed, bool (O, I)."""

    def effective_weight(self) -> Tensor: ...


@dataclass
class Window:
    """Sums over the gradients of one layer in one window.

    count: how many positions are candidates; sensitivity: one of SENSITIVITY_GRADIENTS, or None;
    watched: with `last` and `candidates`, how many of the least sensitive positions are followed.
    A candidate costs 16 bytes; `mean` and `rms` cost 4 bytes per kept weight and a bit per weight,
    and 4 bytes more while a step is read, whose parts add up first.
    """

    count: int
    sensitivity: str | None
    watched: int
    complete: bool = True  # whether the micro-batch at hand is the last of its optimizer step
    final: bool = False  # whether that step is the window's last
    steps: int = 0
    candidates: Tensor | None = None  # (C,), as the layer's indices
    sums: Tensor | None = None
    squares: Tensor | None = None
    followed: Tensor | None = None  # flat positions, or with EVERYWHERE a packed mask (O, I / 8)
    sensitivity_sum: Tensor | None = None  # of gradients, or with SQUARED of their squares
    _running: Tensor | None = field(default=None, repr=False)  # the step's gradient so far
    _whole: Tensor | None = field(default=None, repr=False)  # all of it, until it chooses positions
    _followed_step: Tensor | None = field(default=None, repr=False)  # the step so far

    @torch.no_grad()
    def observe(self, gradient: Tensor, layer: ObservedLayer) -> None:
        """Add gradient (O, I) of one backward call of `layer` to the sums."""
        flat = gradient.to(wider(gradient.dtype)).view(-1)
        if self.candidates is None or (self._follows and self.followed is None):
            whole = self._add_whole(flat)
            if whole is None:
                return
            flat = whole
            self._choose_from(mean_over_ranks(flat), layer)
        assert self.candidates is not None
        assert self._running is not None
        self._running += flat[self.candidates]
        if self._follows:
            followed = flat[self._places(layer)]
            earlier = self._followed_step
            self._followed_step = followed if earlier is None else earlier.add_(followed)

    @property
    def _follows(self) -> bool:
        """Whether the sensitivity reads the step at hand."""
        return self.sensitivity is not None and (self.sensitivity != "last" or self.final)

    def _choose_from(self, flat: Tensor, layer: ObservedLayer) -> None:
        """Choose by a whole gradient, the same in all processes, what is not chosen yet."""
        if self.candidates is None:
            self._choose(flat, layer)
        if self._follows and self.followed is None:
            self._follow(flat, layer)

    def _add_whole(self, flat: Tensor) -> Tensor | None:
        """The step's gradient if `flat` completes it, else None; what is not complete is kept.

        On the host: with micro-batches the whole model's gradient is kept for this one step.
        """
        if self._whole is not None:
            flat = self._whole.to(flat.device) + flat
        self._whole = None if self.complete else flat.to("cpu", copy=True)
        return flat if self.complete else None

    def _choose(self, flat: Tensor, layer: ObservedLayer) -> None:
        growable, score = layer.growable(), flat.abs()
        available = flat.numel()
        if growable is not None:
            score[~growable.reshape(-1)] = -1.0
            available = int(growable.count_nonzero())
        chosen = highest(score, min(self.count, available))
        self.candidates = chosen.to(layer.indices.dtype)
        self.sums = flat.new_zeros(self.candidates.shape)
        self.squares, self._running = self.sums.clone(), self.sums.clone()

    def _follow(self, flat: Tensor, layer: ObservedLayer) -> None:
        prunable = layer.prunable()
        if self.sensitivity in EVERYWHERE:
            self.followed = pack(prunable)
            self.sensitivity_sum = flat.new_zeros(int(prunable.count_nonzero()))
            return
        positions = prunable.reshape(-1).nonzero().view(-1)
        weight = layer.effective_weight().reshape(-1)[positions]
        score = (weight.to(flat.dtype) * flat[positions]).abs()
        chosen = lowest(score, min(self.watched, score.numel()))
        self.followed = positions[chosen].sort().values.to(layer.indices.dtype)
        self.sensitivity_sum = flat.new_zeros(self.followed.shape)

    def _places(self, layer: ObservedLayer) -> Tensor:
        """Index of `sensitivity_sum`'s entries in a flat gradient: positions, or a mask."""
        assert self.followed is not None
        if self.sensitivity not in EVERYWHERE:
            return self.followed
        return unpack(self.followed, layer.in_features).reshape(-1)

    @torch.no_grad()
    def close(self, layer: ObservedLayer) -> bool:
        """End the window; what no gradient has chosen yet is chosen by one of zeros.

        Returns whether there was a gradient: an expert that no token chose has none.
        """
        seen = self.candidates is not None
        if self.candidates is None or (self.sensitivity and self.sensitivity_sum is None):
            self.complete = self.final = True
            self.observe(torch.zeros_like(layer.effective_weight()), layer)
            self._add_running()
        return seen

    @torch.no_grad()
    def end_step(self, layer: ObservedLayer) -> None:
        """Count an optimizer step, whose gradient is complete now, and add it to the sums.

        The step's last micro-batch may not have reached the layer, an expert that no token chose.
        """
        if self._whole is not None:
            self.complete = True
            self.observe(torch.zeros_like(layer.effective_weight()), layer)
        self.steps += 1
        self._add_running()

    def _add_running(self) -> None:
        if self._running is not None:
            average_over_ranks_(self._running)
            assert self.sums is not None
            assert self.squares is not None
            self.sums += self._running
            self.squares.addcmul_(self._running, self._running)
            self._running.zero_()
        if self._follows and self.sensitivity_sum is not None:
            step = self._followed_step
            if step is None:  # no token of this process reached the layer
                step = torch.zeros_like(self.sensitivity_sum)
            average_over_ranks_(step)
            if self.sensitivity in SQUARED:
                self.sensitivity_sum.addcmul_(step, step)
            else:
                self.sensitivity_sum += step
            self._followed_step = None

    def sensitivity_gradient(self, layer: ObservedLayer) -> tuple[Tensor, Tensor]:
        """(flat positions int64, the steps' gradient there).

        SQUARED: its root mean square; `mean`: its mean; `last`: a multiple of the last step's.
        """
        assert self.sensitivity_sum is not None
        places = self._places(layer)
        positions = places.nonzero().view(-1) if self.sensitivity in EVERYWHERE else places.long()
        average = self.sensitivity_sum / self.steps
        return positions, average.sqrt_() if self.sensitivity in SQUARED else average

    def state(self) -> dict[str, Any]:
        """All fields that matter between two optimizer steps, for `from_state`."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Window:
        """The window of `state`, its tensors on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state.items()
        }
        window = cls(**moved)
        if window.sums is not None:
            window._running = torch.zeros_like(window.sums)
        return window
