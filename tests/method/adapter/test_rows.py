from __future__ import annotations

import pytest
import torch
from support.layers import random, sparse_linear
from torch import Tensor, nn

from sparsemend.method.adapter.delta.linear import DeltaLinear
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.losa.linear import LosaLinear

SETTINGS = LorsSettings(2.0, "exact", 1, "float32", torch.float64)


def layers() -> list[nn.Module]:
    start = random(1, 3, seed=5)
    return [
        LorsLinear(sparse_linear(2, 3), start, SETTINGS, derived=False),
        LosaLinear(
            sparse_linear(2, 3), start, SETTINGS, rank=1, dropout=0.0, exact_base=True, nested=False
        ),
        DeltaLinear(sparse_linear(2, 3), torch.tensor([0, 4]), "scatter"),
    ]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 0, 3), (2, 4, 3), (2, 1, 4, 3)], ids=str)
def test_an_output_may_be_changed_in_place(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As Falcon adds its residual and OLMo clips: gradients are those of the change elsewhere."""

    def gradients(*, in_place: bool) -> list[Tensor]:
        x = random(*shape, seed=7).requires_grad_()
        parameters = [p for p in layer.parameters() if p.requires_grad]
        output = layer(x)
        assert output.shape == (*shape[:-1], 2)
        output = output.clamp_(-0.5, 0.5) if in_place else output.clamp(-0.5, 0.5)
        return list(torch.autograd.grad(output.square().sum(), [x, *parameters]))

    pairs = zip(gradients(in_place=True), gradients(in_place=False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
