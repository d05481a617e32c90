"""Where calls are recorded while the model lies on the host."""

from __future__ import annotations

import pytest
import torch
from support.families import random_model
from support.pretended_device import FAR, Far, Seen
from torch import nn

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.self_check import check_walk
from sparsemend.blocks.walk import Calibration

pytestmark = pytest.mark.device
WINDOWS = torch.randint(3, 96, (2, 16), generator=torch.Generator().manual_seed(0))


def note_devices(model: nn.Module) -> set[torch.device]:
    """The devices on which modules of `model` will be given tensors."""
    seen: set[torch.device] = set()

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.update(x.device for x in inputs if isinstance(x, torch.Tensor))

    for module in model.modules():
        module.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_nothing_is_computed_on_the_host_and_all_is_back_there_afterwards(
    family: str, far: Seen
) -> None:
    model = random_model(family)
    seen = note_devices(model)
    recorded = Calibration((WINDOWS,), device=FAR, offload=True).record(model)
    assert seen == {FAR}
    assert all(isinstance(state, Far) for state in recorded.states)
    check_walk(model, WINDOWS[:1], device=FAR, offload=True)
    assert seen == {FAR}
    left = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in left} == {"cpu"}
    block = find_blocks(model)[1][0]
    assert all(isinstance(parameter, nn.Parameter) for parameter in block.parameters())


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_an_offloaded_model_is_recorded_as_one_that_is_there(family: str, far: Seen) -> None:
    offloaded, there = random_model(family), random_model(family).to(FAR)
    calls = [
        Calibration((WINDOWS,), device=FAR, offload=model is offloaded).record(model)
        for model in (offloaded, there)
    ]
    for one, other in zip(calls[0].states, calls[1].states, strict=True):
        assert torch.equal(one.cpu(), other.cpu())
