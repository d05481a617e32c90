"""The base of SEFT and SpIEL: a budget of deltas, their starts, their optimizer and rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.names import saved_name
from sparsemend.method.adapter.delta.budget import DeltaBudget
from sparsemend.method.adapter.delta.linear import KERNEL_CHOICES, DeltaLinear, delta_linears
from sparsemend.method.adapter.delta.rounds import DeltaRounds
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.adapter.delta.slot_adamw import SlotAdamW
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.adapter.low_rank import attach_adapters
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.plan import check_choice


@dataclass(kw_only=True)
class DeltaRepair(TrainedRepair):
    """Trains the values of sparse deltas that move in rounds."""

    budget: Mapping[str, Any]  # the fields of DeltaBudget
    update_interval: int
    accumulation_steps: int
    initial_drop_rate: float
    first_drop_rate: float | None
    drop_schedule: str
    seed_age_offset: int
    epsilon: float
    kernel: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.deltas = DeltaBudget(**self.budget)
        self.rounds = RoundSchedule(
            interval=self.update_interval,
            window=self.accumulation_steps,
            steps=self.max_steps,
            initial=self.initial_drop_rate,
            first=self.first_drop_rate,
            decay=self.drop_schedule,
        )
        self.evolution: DeltaRounds | None = None
        check_choice("kernel", self.kernel, KERNEL_CHOICES)
        check_choice("optimizer", self.optimizer, ("adamw", "sgd"))
        check_choice("precision", self.precision, ("32-true", "bf16-mixed"))
        if self.seed_age_offset not in (0, 1):
            raise ValueError(f"method.seed_age_offset={self.seed_age_offset} is not 0 or 1")
        SlotAdamW([nn.Parameter(torch.zeros(1))], **self._adamw())  # raises on bad values

    @abstractmethod
    def make_layer(self, linear: SparseLinear, positions: Tensor) -> DeltaLinear:
        """The layer with deltas at flat positions (k,)."""

    @abstractmethod
    def make_window(self, layer: DeltaLinear) -> Window:
        """The window that collects the gradients of `layer` before a round."""

    @abstractmethod
    def make_rounds(self) -> DeltaRounds:
        """The callback that moves deltas."""

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        linears = prunable_linears(model)
        # whether a file of supports fits the model is checked where the file is used
        if supports is not None and supports.keys() == linears.keys():
            self.shares(model, {name: int(keep.count_nonzero()) for name, keep in supports.items()})

    def counts(self, model: PreTrainedModel) -> dict[str, int]:
        """Linear name -> number of deltas; raises ValueError if a linear keeps fewer weights."""
        return self.shares(
            model, {name: int(m.keep.count_nonzero()) for name, m in sparse_linears(model)}
        )

    def shares(self, model: PreTrainedModel, kept: Mapping[str, int]) -> dict[str, int]:
        """`counts` for linears of which each keeps the `kept` number of weights."""
        linears = prunable_linears(model)
        shapes = {name: tuple(linears[name].weight.shape) for name in kept}
        counts = self.deltas.per_linear(shapes, sum(p.numel() for p in model.parameters()))
        for name, count in counts.items():
            self.deltas.check(saved_name(model, name), count, kept[name])
        return counts

    def attach_at(self, model: PreTrainedModel, positions: Mapping[str, Tensor]) -> None:
        """Give every linear its deltas; one without positions stays a plain SparseLinear."""

        def make(name: str, linear: SparseLinear) -> SparseLinear:
            if not positions[name].numel():
                return linear
            return self.make_layer(linear, positions[name])

        attach_adapters(model, make)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return [layer.values for _, layer in delta_linears(model)]

    def ready_for(self, model: PreTrainedModel, step: int) -> None:
        """Give every layer a fresh window if optimizer step `step` is observed, else none."""
        make_window = self.make_rounds().make_window
        for _, layer in delta_linears(model):
            layer.window = None
            if make_window is not None and self.rounds.observes(step):
                layer.window = make_window(layer)

    def callbacks(self) -> list[Callback]:
        self.evolution = self.make_rounds()
        return [*super().callbacks(), self.evolution]

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        if self.optimizer != "adamw":
            return super().make_optimizer(model)
        return SlotAdamW([p for p in model.parameters() if p.requires_grad], **self._adamw())

    def _adamw(self) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "betas": self.plan.both_betas,
            "eps": self.epsilon,
            "weight_decay": self.weight_decay,
        }

    def evolution_record(self, model: PreTrainedModel) -> dict[str, Any]:
        """The record of all rounds of the fit, even those after its best weights (keep_best).

        Every list of a round has a number per entry of `linears`.
        """
        layers = dict(delta_linears(model))
        return {
            "evolution": {
                "linears": [saved_name(model, name) for name in layers],
                "kept": [layer.starting_count for layer in layers.values()],
                "deltas": [layer.indices.numel() for layer in layers.values()],
                "rounds": [] if self.evolution is None else self.evolution.records,
            }
        }
