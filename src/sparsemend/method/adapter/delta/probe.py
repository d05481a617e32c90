"""The loss of a model in the middle of its fit, on a fixed few windows: what a round changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule

from sparsemend.data.base import Examples
from sparsemend.training.batches import mean_loss
from sparsemend.training.module import RepairModule


@dataclass(frozen=True, kw_only=True)
class LossProbe:
    """Measures mean loss over the labelled tokens of `examples`, `at_once` windows per forward."""

    examples: Examples
    at_once: int

    def __call__(self, module: LightningModule) -> float:
        """The loss in evaluation mode and the fit's precision; draws nothing at random."""
        assert isinstance(module, RepairModule)
        model, device = module.model, torch.device(module.device)
        training = model.training
        model.eval()
        try:
            with module.trainer.precision_plugin.forward_context():
                return mean_loss(model, self.examples, device, self.at_once)
        finally:
            model.train(training)
