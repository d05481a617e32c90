"""One method on one model: steps as training takes them, figures that follow from its layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.bench.candidate import Candidate, living, saved_for_backward
from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.methods import checkpointing
from sparsemend.blocks.find import prunable_linears
from sparsemend.config.locations import conf_folder
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.logits import next_token_loss


class Scaled(SparseLinear):
    """W_eff = gain * W, gain (O, 1): autograd keeps W_eff for the input's gradient alone."""

    def __init__(self, base: SparseLinear) -> None:
        super().__init__(base.weight, base.bias, base.keep)
        self.gain = nn.Parameter(torch.ones(base.out_features, 1))

    def effective_weight(self) -> Tensor:
        return self.weight * self.gain


@dataclass(kw_only=True)
class Gains(TrainedRepair):
    """Trains one gain per output."""

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        for name, linear in list(sparse_linears(model)):
            model.set_submodule(name, Scaled(linear))

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return [m.gain for m in model.modules() if isinstance(m, Scaled)]


def gains(**changes: Any) -> Gains:
    plan = OmegaConf.to_container(OmegaConf.load(conf_folder() / "training" / "default.yaml"))
    assert isinstance(plan, dict)
    return Gains(**{**plan, **changes})  # type: ignore[misc]


def candidate(setting: Setting, **changes: Any) -> Candidate:
    model = setting.pruned_model(8)
    bench = setting.bench(model, setting.tokens(4, 8), Magnitude(group="row"))
    return Candidate(gains(**changes), model, bench)


def frozen(setting: Setting) -> PreTrainedModel:
    model = setting.pruned_model(8)
    model.requires_grad_(False).train()
    return model


def test_the_frozen_model_saves_as_much_as_itself(setting: Setting) -> None:
    model, tokens = frozen(setting), setting.tokens(2, 8)
    saved = saved_for_backward(model, lambda: next_token_loss(model, tokens, tokens))
    assert saved > 0
    assert not model.get_input_embeddings()._forward_hooks


def test_a_step_moves_what_is_trained_and_nothing_else(setting: Setting) -> None:
    one = candidate(setting)
    before = {name: p.clone() for name, p in one.model.named_parameters()}
    one.step(setting.tokens(2, 8))
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.endswith("gain")}
    assert all(p.grad is None for p in one.model.parameters())


def test_extra_saved_bytes_are_what_the_layer_keeps(setting: Setting) -> None:
    base, tokens = frozen(setting), setting.tokens(2, 8)
    reference = saved_for_backward(base, lambda: next_token_loss(base, tokens, tokens))
    figures = candidate(setting).figures(tokens, frozen_saved=reference)
    weights = sum(linear.weight.numel() for linear in prunable_linears(base).values())
    assert figures["extra_saved_bytes"] == 4 * weights  # one fp32 effective weight
    assert figures["extra_saved_per_weight"] == 4


def test_nothing_extra_is_saved_when_blocks_are_recomputed(setting: Setting) -> None:
    base, tokens, one = frozen(setting), setting.tokens(2, 8), candidate(setting)
    plain = one.figures(tokens, frozen_saved=0)
    with checkpointing([base, one.model], True):
        reference = saved_for_backward(base, lambda: next_token_loss(base, tokens, tokens))
        figures = one.figures(tokens, frozen_saved=reference)
    assert figures["extra_saved_bytes"] == 0
    assert figures["forward_flops"] == plain["forward_flops"]
    assert figures["backward_flops"] > plain["backward_flops"]
    assert one.figures(tokens, frozen_saved=0)["saved_bytes"] == plain["saved_bytes"]  # undone


def test_forward_flops_are_two_per_token_and_weight_of_every_linear(setting: Setting) -> None:
    model, tokens = frozen(setting), setting.tokens(2, 8)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    figures = candidate(setting).figures(tokens, frozen_saved=0)
    # attention's own kernel is unknown to the counter on CPU
    assert figures["forward_flops"] == 2 * tokens.numel() * weights


def test_the_peak_holds_the_model_and_the_optimizers_state(setting: Setting) -> None:
    tokens = setting.tokens(2, 8)
    one = candidate(setting, optimizer="adamw")
    adamw = one.figures(tokens, frozen_saved=0)
    sgd = candidate(setting, optimizer="sgd").figures(tokens, frozen_saved=0)
    trained = sum(p.numel() for p in one.model.parameters() if p.requires_grad)
    assert adamw["trained_parameters"] == trained
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in living(one.model)}
    resident = sum(storage.nbytes() for storage in storages.values())
    assert sgd["peak_bytes"] > resident + 4 * trained  # and the gradients
    assert adamw["peak_bytes"] >= sgd["peak_bytes"] + 2 * 4 * trained  # two moments


def test_the_plans_precision_is_the_steps(setting: Setting) -> None:
    tokens = setting.tokens(2, 8)
    full = candidate(setting).figures(tokens, frozen_saved=0)
    mixed = candidate(setting, precision="bf16-mixed").figures(tokens, frozen_saved=0)
    assert mixed["saved_bytes"] != full["saved_bytes"]


def test_a_compiled_method_is_refused(setting: Setting) -> None:
    with pytest.raises(ValueError, match="set compile: false"):
        candidate(setting, compile=True)
