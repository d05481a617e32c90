"""When and how sparse deltas move: a window observes gradients, then a round moves the deltas.

A round takes one layer at a time.  It drops the smallest |value|, grows where |sum of gradients| is
largest, keeps deltas that are both dropped and chosen, and seeds the optimizer state of those that
moved.  A method adds its own steps in `settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed
from torch.optim import Optimizer

from sparsemend.method.adapter.delta.function import KERNELS
from sparsemend.method.adapter.delta.linear import DeltaLinear, chosen_kernel, delta_linears
from sparsemend.method.adapter.delta.probe import LossProbe
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.adapter.delta.slot_adamw import SlotAdamW
from sparsemend.method.adapter.delta.window import Window
from sparsemend.sparse.drop_and_grow import Move, exchange, forget_
from sparsemend.training.mask_callbacks import UpdateMasks


@dataclass(kw_only=True)
class Round:
    """The record of one round; each list has a number per linear in module order."""

    step: int
    fraction: float
    nominal: list[int]  # deltas that the schedule asked to move
    moved: list[int]
    returned: list[int]  # dropped and chosen again: they stayed

    def content(self) -> dict[str, Any]:
        return vars(self)


@dataclass
class Moved:
    """One layer that a round has moved; `grown` are its slots of new growth after sorting."""

    layer: DeltaLinear
    window: Window | None
    grown: Tensor  # slots (P,)


class DeltaRounds(UpdateMasks):
    """Opens windows, collects gradients and moves deltas; `records` has an entry per round."""

    moves_supports: ClassVar[bool] = False  # but those that a layer has among its `moving`

    def __init__(
        self,
        schedule: RoundSchedule,
        make_window: Callable[[DeltaLinear], Window] | None,
        *,
        seed_age_offset: int,
    ) -> None:
        """make_window None: growth needs no gradients (SpIEL-MA)."""
        super().__init__()
        self.schedule, self.make_window = schedule, make_window
        self.seed_age_offset = seed_age_offset
        self.records: list[dict[str, Any]] = []
        self.kernels: dict[str, str] = {}
        self.probe: LossProbe | None = None  # measures the loss around every part of a round
        self._restored: dict[str, dict[str, Any]] = {}

    def due(self, step: int) -> bool:
        return self.schedule.due(step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._choose_kernels(pl_module, rows=batch[0].numel())
        step = trainer.global_step + 1
        if self.make_window is None or not self.schedule.observes(step):
            return
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        for name, layer in delta_linears(pl_module):
            if layer.window is None:
                kept = self._restored.pop(name, None)
                layer.window = (
                    Window.from_state(kept, layer.weight.device)
                    if kept
                    else self.make_window(layer)
                )
            layer.window.complete, layer.window.final = complete, self.due(step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for _, layer in delta_linears(pl_module):
            if layer.window is not None:
                layer.window.end_step(layer)

    def update(
        self, module: LightningModule, optimizer: Optimizer, step: int
    ) -> Mapping[str, float]:
        fraction = self.schedule.fraction(step)
        record = Round(step=step, fraction=fraction, nominal=[], moved=[], returned=[])
        losses = self._loss("before", module)
        moved = []
        for _, layer in delta_linears(module):
            seen = layer.window is None or layer.window.close(layer)
            count = int(layer.indices.numel() * fraction) if seen else 0
            move = self.choose(layer, optimizer, count)
            record.nominal.append(count)
            record.moved.append(move.slots.numel())
            record.returned.append(move.returning.numel())
            moved.append(self._carry_out(layer, move, optimizer))
        losses |= self._loss("moved", module)
        settled = self.settle(moved, optimizer)
        losses |= self._loss("settled", module)
        self.records.append({**record.content(), **settled, **losses})
        for each in moved:
            each.layer.window = None
        exchanged, returned = sum(record.moved), sum(record.returned)
        return {
            "dropped": exchanged,
            "grown": exchanged,
            "returned": returned,
            "fraction": fraction,
            **{name: sum(counts) for name, counts in settled.items()},
            **losses,
        }

    def _loss(self, moment: str, module: LightningModule) -> dict[str, float]:
        """The probe's loss as `loss_<moment>`, empty without a probe."""
        return {} if self.probe is None else {f"loss_{moment}": self.probe(module)}

    def choose(self, layer: DeltaLinear, optimizer: Optimizer, count: int) -> Move:
        """Drop by |value|, grow by |sum of the window's gradients|."""
        window = layer.window
        assert window is not None
        assert window.candidates is not None
        assert window.sums is not None
        return exchange(
            layer.indices,
            layer.values.detach().abs(),
            window.candidates,
            window.sums.abs(),
            count=count,
            size=layer.size,
        )

    def replace_(self, layer: DeltaLinear, move: Move) -> Tensor:
        """Carry out `move` on one layer; return its slots of new growth (P,)."""
        return layer.replace_(move)

    def settle(self, moved: list[Moved], optimizer: Optimizer) -> Mapping[str, list[int]]:
        """Finish the round once every layer has moved; return diagnostics, lists over layers."""
        return {}

    def _carry_out(self, layer: DeltaLinear, move: Move, optimizer: Optimizer) -> Moved:
        grown = self.replace_(layer, move)
        state = optimizer.state.get(layer.values, {})
        forget_(state, layer.values.shape, grown)
        if grown.numel() and layer.window is not None and isinstance(optimizer, SlotAdamW):
            self._seed(layer, layer.window, grown, optimizer)
        order = layer.sort_()
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == order.shape:
                value.copy_(value[order])
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return Moved(layer, layer.window, place[grown])

    def _seed(
        self, layer: DeltaLinear, window: Window, grown: Tensor, optimizer: SlotAdamW
    ) -> None:
        assert window.candidates is not None
        assert window.sums is not None
        assert window.squares is not None
        candidates, order = window.candidates.sort()
        at = order[torch.searchsorted(candidates, layer.indices[grown])]
        optimizer.seed_(
            layer.values,
            grown,
            window.sums[at] / window.steps,
            window.squares[at] / window.steps,
            age=window.steps,
            stored=window.steps + self.seed_age_offset - 1,
        )

    def _choose_kernels(self, module: LightningModule, rows: int) -> None:
        """Settle on one kernel per layer, the first process's choice on all, once per fit."""
        for name, layer in delta_linears(module):
            if layer.kernel in KERNELS:
                continue
            if name not in self.kernels:
                number = KERNELS.index(chosen_kernel(layer, rows=rows))
                chosen = torch.tensor(number, device=layer.weight.device)
                if distributed.is_available() and distributed.is_initialized():
                    distributed.broadcast(chosen, src=0)
                self.kernels[name] = KERNELS[int(chosen)]
            layer.kernel = self.kernels[name]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"records": self.records, "kernels": self.kernels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.records, self.kernels = list(state_dict["records"]), dict(state_dict["kernels"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["windows"] = {
            name: layer.window.state()
            for name, layer in delta_linears(pl_module)
            if layer.window is not None
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = dict(checkpoint["windows"])
