"""Three kernels of one function: values, gradients, and what they never form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.layers import EXACT, UNIT, Watch, flops, random, saved_bytes, sparse_linear
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsemend.method.adapter.delta import function, linear
from sparsemend.method.adapter.delta.function import (
    KERNELS,
    DeltaFunction,
    DeltaSettings,
    column_products,
    csr,
    has_sparse_products,
    sampled_products,
    transposed_csr,
)
from sparsemend.method.adapter.delta.linear import DeltaLinear, fastest_kernel
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.adapter.fold import fold_linear

OUTPUTS, INPUTS, COUNT = 6, 7, 9
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)


def delta_linear(
    kernel: str, *, dtype: torch.dtype = torch.float64, bias: bool = False
) -> DeltaLinear:
    """A layer whose deltas lie on and off the support, moved off their start."""
    base = sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=bias)
    generator = torch.Generator().manual_seed(3)
    layer = DeltaLinear(
        base, torch.randperm(base.weight.numel(), generator=generator)[:COUNT], kernel
    )
    with torch.no_grad():
        layer.values.copy_(random(COUNT, seed=4))
    return layer


def dense_delta(layer: DeltaLinear, values: Tensor) -> Tensor:
    """d as autograd sees it when it is written densely."""
    empty = torch.zeros(layer.size, dtype=values.dtype)
    return empty.index_put((layer.indices.long(),), values).view(OUTPUTS, INPUTS)


def inputs(*leading: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return random(*leading, INPUTS, seed=6, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("bias", [False, True])
@EVERY_KERNEL
def test_gradients_pass_finite_differences(kernel: str, bias: bool) -> None:
    layer = delta_linear(kernel, bias=bias)
    settings = DeltaSettings(kernel, torch.float64)

    def apply(x: Tensor, values: Tensor, *added: Tensor) -> Tensor:
        return DeltaFunction.apply(
            x, layer.weight, values, layer.indices, None, added[0] if bias else None, settings, None
        )

    given = [inputs(2, 3), layer.values]
    if bias:
        given.append(random(OUTPUTS, seed=8).requires_grad_())
    assert gradcheck(apply, given)


@pytest.mark.parametrize("calls", [1, 2])
@EVERY_KERNEL
def test_values_and_gradients_are_the_dense_ones(kernel: str, calls: int) -> None:
    """Also of a layer that is used twice in one graph."""
    layer = delta_linear(kernel, bias=True)

    def through(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        for _ in range(calls):
            x = forward(x)[..., :1] * x if calls > 1 else forward(x)
        return x

    x, other = inputs(2, 3), inputs(2, 3)
    values = layer.values.detach().clone().requires_grad_()

    def dense(x: Tensor) -> Tensor:
        return F.linear(x, layer.weight + dense_delta(layer, values), layer.bias)

    y, expected = through(layer, x), through(dense, other)
    torch.testing.assert_close(y, expected, **EXACT)
    outer = random(*y.shape, seed=7)
    y.backward(outer)
    expected.backward(outer)
    assert layer.values.grad is not None
    torch.testing.assert_close(layer.values.grad, values.grad, **EXACT)
    torch.testing.assert_close(x.grad, other.grad, **EXACT)


@EVERY_KERNEL
def test_accumulated_micro_batches_are_one_batch(kernel: str) -> None:
    one, two = delta_linear(kernel), delta_linear(kernel)
    x, outer = inputs(4, 3).detach(), random(4, 3, OUTPUTS, seed=7)
    one(x).backward(outer)
    for part in (slice(0, 1), slice(1, 4)):
        two(x[part]).backward(outer[part])
    torch.testing.assert_close(one.values.grad, two.values.grad, **EXACT)


@EVERY_KERNEL
def test_kernels_agree_in_fp32_to_a_hundred_thousandth(kernel: str) -> None:
    layer, exact = delta_linear(kernel, dtype=torch.float32), delta_linear("scatter")
    results = []
    for each, dtype in ((layer, torch.float32), (exact, torch.float64)):
        x = inputs(2, 3, dtype=torch.float32).detach().to(dtype).requires_grad_()
        y = each(x)
        y.backward(random(*y.shape, seed=7, dtype=torch.float32).to(dtype))
        assert each.values.grad is not None
        results.append((y.double(), each.values.grad.double(), x.grad.double()))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@EVERY_KERNEL
def test_activation_checkpointing_changes_no_bit(kernel: str) -> None:
    plain, again = delta_linear(kernel), delta_linear(kernel)
    x = inputs(2, 3)
    plain(x).sum().backward()
    checkpoint(again, x, use_reentrant=False).sum().backward()
    assert torch.equal(plain.values.grad, again.values.grad)


def test_chunked_column_products_are_the_sampled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sparsemend.method.adapter.delta.function.CHUNK", 10
    )  # two columns of five tokens
    layer = delta_linear("gather")
    d, x = random(5, OUTPUTS, seed=1), random(5, INPUTS, seed=2)
    exact = (d.T @ x).view(-1)[layer.indices.long()]
    for product in (column_products, sampled_products):
        torch.testing.assert_close(product(d, x, layer.indices, layer.weight.shape), exact, **EXACT)


def test_both_compressed_forms_are_the_delta() -> None:
    layer = delta_linear("sparse")
    dense = dense_delta(layer, layer.values.detach())
    given = layer.indices, layer.values.detach(), layer.weight.shape
    assert torch.equal(csr(*given).to_dense(), dense)
    assert torch.equal(transposed_csr(*given).to_dense(), dense.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EVERY_KERNEL
def test_nothing_is_kept_for_backward_beyond_input_and_own_tensors(
    kernel: str, dtype: torch.dtype
) -> None:
    assert saved_bytes(delta_linear(kernel, dtype=dtype), inputs(2, 3, dtype=dtype)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["gather", "sparse"])
def test_outside_windows_no_weight_shaped_gradient_is_formed(
    kernel: str, dtype: torch.dtype
) -> None:
    """Nothing dense of the weight's shape is made, W + d neither, and no product has it.

    The sparse patterns have that shape too; their storage is not the dense one.
    """
    layer = delta_linear(kernel, dtype=dtype)
    x = inputs(2, 4, dtype=dtype)
    y = layer(x)
    outer = random(*y.shape, seed=7, dtype=dtype)
    with Watch((OUTPUTS, INPUTS)) as watch:
        y.backward(outer)
    dense = [entry for entry in watch.made if entry[2].layout is torch.strided]
    made = {r.untyped_storage().data_ptr() for _, _, r in dense if r.is_floating_point()}
    assert made <= {layer.weight.untyped_storage().data_ptr()}
    assert [name for name, _, _ in dense if "mm" in name] == []


@pytest.mark.parametrize("kernel", ["scatter", "gather"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_has_its_bits_back_after_every_product(
    kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = delta_linear(kernel, dtype=dtype)
    effective, before, x = layer.effective_weight(), layer.weight.clone(), inputs(2, 4, dtype=dtype)
    y = layer(x)
    assert torch.equal(y, F.linear(x.flatten(0, 1), effective).view(y.shape))
    assert torch.equal(layer.weight, before)
    y.sum().backward()
    assert torch.equal(layer.weight, before)

    def interrupted(self: Tensor, other: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tensor, "__matmul__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    assert torch.equal(layer.weight, before)


def test_a_weight_that_other_processes_read_is_not_written_to() -> None:
    layer, x = delta_linear("gather"), inputs(2, 4)
    own = layer(x)
    layer.weight.share_memory_()
    with Watch((OUTPUTS, INPUTS)) as watch:
        assert torch.equal(layer(x), own)
    shared = layer.weight.untyped_storage().data_ptr()
    assert [n for n, _, r in watch.made if r.untyped_storage().data_ptr() != shared]


@EVERY_KERNEL
def test_an_open_window_sees_the_dense_gradient_once_per_call(kernel: str) -> None:
    layer = delta_linear(kernel)
    seen = []
    x = inputs(2, 4)
    settings = DeltaSettings(kernel, torch.float64)
    y = DeltaFunction.apply(
        x, layer.weight, layer.values, layer.indices, None, None, settings, seen.append
    )
    outer = random(*y.shape, seed=7)
    y.backward(outer)
    expected = outer.flatten(0, 1).T @ x.detach().flatten(0, 1)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, **EXACT)
    torch.testing.assert_close(layer.values.grad, expected.view(-1)[layer.indices.long()], **EXACT)


@pytest.mark.parametrize(("kernel", "products"), [("scatter", 3), ("gather", 2)])
def test_gather_does_without_the_third_product(kernel: str, products: int) -> None:
    """Forward and backward, counted in products of eight tokens with the whole weight."""
    layer, x = delta_linear(kernel), inputs(2, 4)
    assert flops(lambda: layer(x).sum().backward()) == products * 2 * 8 * OUTPUTS * INPUTS


@EVERY_KERNEL
def test_slots_that_do_not_train_get_no_gradient(kernel: str) -> None:
    layer, alive = delta_linear(kernel), torch.arange(COUNT) % 2
    settings = DeltaSettings(kernel, torch.float64)
    DeltaFunction.apply(
        inputs(2, 3), layer.weight, layer.values, layer.indices, alive, None, settings, None
    ).sum().backward()
    assert layer.values.grad is not None
    assert (layer.values.grad != 0).tolist() == alive.bool().tolist()


def test_values_below_the_spacing_of_a_bf16_weight_are_added_before_rounding() -> None:
    """W + d is one rounding of the exact sum."""
    layer = delta_linear("gather", dtype=torch.bfloat16)
    exact = layer.weight.double() + dense_delta(layer, layer.values.detach().double())
    assert layer.values.dtype == torch.float32
    assert layer.effective_weight().dtype == torch.bfloat16
    error = (layer.effective_weight().double() - exact).abs()
    assert (error <= UNIT[torch.bfloat16] * exact.abs() * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_folding_is_the_adapters_weight_to_the_bit(dtype: torch.dtype) -> None:
    layer = delta_linear("gather", dtype=dtype)
    with torch.no_grad():
        layer.values[~layer.keep.reshape(-1)[layer.indices.long()]] = 0
    assert torch.equal(fold_linear(layer).weight, layer.effective_weight())


@EVERY_KERNEL
def test_under_autocast_products_are_bf16_and_gradients_fp32(kernel: str) -> None:
    layer = delta_linear(kernel, dtype=torch.float32)
    x = inputs(2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == torch.bfloat16
    assert layer.values.grad is not None
    assert x.grad is not None
    assert layer.values.grad.dtype == x.grad.dtype == torch.float32
    exact = F.linear(x, layer.effective_weight())
    magnitude = F.linear(x.abs(), layer.weight.abs() + dense_delta(layer, layer.values).abs())
    # factors, sum, and in `sparse` one more sum, rounded once each
    assert ((y - exact).abs() <= 4 * UNIT[torch.bfloat16] * magnitude).all()


def test_a_weight_that_asks_for_its_gradient_is_refused() -> None:
    layer = delta_linear("gather")
    layer.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="freeze the weight"):
        layer(inputs(2))


def test_auto_settles_on_one_kernel_per_shape() -> None:
    layer = delta_linear("auto", dtype=torch.float32)
    layer(inputs(2, 3, dtype=torch.float32))
    assert layer.kernel in KERNELS
    assert layer.kernel == fastest_kernel(layer, rows=6)


def test_by_device_measures_where_no_bench_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_fastest", lambda *arguments: "sparse")
    kernels = []
    for unknown in (set(), {"cpu"}):
        monkeypatch.setattr(linear, "UNKNOWN", unknown)
        layer = delta_linear("by_device")
        layer(inputs(2, 3))
        kernels.append(layer.kernel)
    assert kernels == ["gather", "sparse"]


def test_no_csr_matrix_is_made_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [has_sparse_products(torch.device(name)) for name in ("cuda", "mps")] == [True, False]

    def refused(*_: Tensor) -> None:
        raise NotImplementedError("no CSR here")

    for module in (function, linear):
        monkeypatch.setattr(module, "has_sparse_products", lambda device: False)
    monkeypatch.setattr(function, "csr_int32", refused)
    linear._fastest.cache_clear()
    for kernel in ("auto", "gather", "scatter"):
        layer = delta_linear(kernel, dtype=torch.float32)
        layer(inputs(2, 3, dtype=torch.float32)).sum().backward()
        assert layer.values.grad is not None
        assert layer.kernel != "sparse"
    linear._fastest.cache_clear()


def test_a_window_is_not_opened_by_the_layer_itself() -> None:
    layer = delta_linear("gather")
    window = Window(3, None, watched=0)
    layer(inputs(2, 3)).sum().backward()
    assert window.candidates is None
    layer.window = window
    layer(inputs(2, 3)).sum().backward()
    assert window.candidates is not None
    assert len(window.candidates) == 3
