"""torch.compile keeps nothing weight-sized, and gives what the eager layers give."""

from __future__ import annotations

import pytest
import torch
from support.layers import random, saved_bytes, sparse_linear
from torch import Tensor, nn

from sparsemend.method.adapter import lors_operator
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear
from sparsemend.sparse.linear import SparseLinear

# traces both passes and cuts them where the least is kept, as inductor does, without its code
BACKEND = "aot_eager_decomp_partition"
WIDTH, RANK, TOKENS = 24, 3, 5


def masked(base: SparseLinear) -> MaskedLoraLinear:
    return MaskedLoraLinear(base, random(RANK, WIDTH, seed=4), 1.7)


def lors(base: SparseLinear) -> LorsLinear:
    settings = LorsSettings(1.7, "ste", 5, "float32", base.weight.dtype)
    return LorsLinear(base, random(RANK, WIDTH, seed=4), settings, derived=False)


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """Two layers with a bias that trains and something between them, and an input."""
    make = {"masked": masked, "lors": lors}[kind]
    layers = [make(sparse_linear(WIDTH, WIDTH, dtype=torch.float32, bias=True)) for _ in range(2)]
    for layer in layers:
        layer.bias.requires_grad_(True)
        with torch.no_grad():
            layer.lora_b.copy_(random(WIDTH, RANK, seed=5))
    x = random(2, TOKENS, WIDTH, seed=6, dtype=torch.float32).requires_grad_()
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]), x


def results(call: nn.Module, x: Tensor, trained: list[Tensor]) -> list[Tensor]:
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *trained])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "lors"])
def test_compiled_layers_give_the_same_bits_and_keep_the_same_few_bytes(kind: str) -> None:
    model, x = network(kind)
    trained = [p for p in model.parameters() if p.requires_grad]
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    pairs = zip(results(compiled, x, trained), results(model, x, trained), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    # what ReLU passes on: the second layer's input, and where it was above zero
    rows = 4 * 2 * TOKENS * WIDTH
    assert saved_bytes(model, x) <= 2 * rows
    assert saved_bytes(compiled, x) <= 2 * rows
    torch._dynamo.reset()


def test_a_weight_that_asks_for_its_gradient_is_refused_where_one_would_be_formed() -> None:
    layer = masked(sparse_linear(WIDTH, WIDTH))
    layer.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="forms no weight gradient; freeze the weight"):
        layer(random(2, WIDTH, seed=6))
    with torch.no_grad():
        layer(random(2, WIDTH, seed=6))


@pytest.mark.parametrize("asked", ["x", "a", "b", "bias"])
def test_the_operator_gives_each_gradient_by_itself(asked: str) -> None:
    layer = lors(sparse_linear(WIDTH, WIDTH, bias=True))
    tensors = {"x": random(4, WIDTH, seed=6), "a": layer.lora_a, "b": layer.lora_b}
    tensors["bias"] = layer.bias
    tensors = {name: t.detach().requires_grad_(name == asked) for name, t in tensors.items()}
    x, a, b, bias = tensors.values()
    s = layer.settings
    plain = (s.scale, s.grad_mode, s.tile_rows, s.fuse_dtype, s.dtype, s.base)
    y = lors_operator.OPERATOR(x, layer.weight, a, b, layer.packed_keep, bias, *plain)
    other = lors_operator.LorsFunction.apply(x, layer.weight, a, b, bias, layer.packed_keep, s)
    (one,) = torch.autograd.grad(y.square().sum(), tensors[asked])
    (two,) = torch.autograd.grad(other.square().sum(), tensors[asked])
    assert torch.equal(y, other)
    assert torch.equal(one, two)
