"""LoRS' linear against plain autograd, in values, gradients and what it keeps in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.layers import EXACT, UNIT, Watch, assert_within, random, saved_bytes, sparse_linear
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsemend.method.adapter.fold import fold_linear
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import (
    GRAD_MODES,
    LorsFunction,
    LorsSettings,
    fused_weight,
)
from sparsemend.sparse.packing import pack

OUTPUTS, INPUTS, RANK, SCALE = 12, 20, 3, 1.7  # no multiple of 8, so that packing pads
TILE = 5  # does not divide OUTPUTS
EXACT_MODES = ["exact", "exact_tiled"]
BOTH_MASKS = pytest.mark.parametrize("derived", [False, True], ids=["stored", "derived"])


def lors(
    grad_mode: str = "ste",
    *,
    derived: bool = False,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    fuse_dtype: str = "float32",
    outputs: int = OUTPUTS,
    scale: float = SCALE,
) -> LorsLinear:
    """A layer with both factors off their start, and a bias that trains if there is one."""
    base = sparse_linear(outputs, INPUTS, dtype=dtype, bias=bias)
    settings = LorsSettings(scale, grad_mode, TILE, fuse_dtype, dtype)
    layer = LorsLinear(base, random(RANK, INPUTS, seed=4) / INPUTS**0.5, settings, derived=derived)
    with torch.no_grad():
        layer.lora_b.copy_(random(outputs, RANK, seed=5))
    if layer.bias is not None:
        layer.bias.requires_grad_(True)
    return layer


def inputs(*leading: int, dtype: torch.dtype = torch.float64, seed: int = 6) -> Tensor:
    return random(*leading, INPUTS, seed=seed, dtype=dtype).requires_grad_()


def gradients(layer: nn.Module, x: Tensor, y: Tensor, outer: Tensor) -> dict[str, Tensor]:
    """Of x and of every parameter that trains, by name."""
    named = {n: p for n, p in layer.named_parameters() if p.requires_grad} | {"x": x}
    found = torch.autograd.grad(y, list(named.values()), outer)
    return dict(zip(named, found, strict=True))


def exact_forward(layer: LorsLinear, x: Tensor) -> Tensor:
    """x (keep * (W + s B A))^T + bias, as autograd differentiates it."""
    merged = layer.weight + layer.scale * layer.lora_b @ layer.lora_a
    return F.linear(x, merged * layer.keep, layer.bias)


def straight_through_forward(layer: LorsLinear, x: Tensor) -> Tensor:
    """The same value; the mask is the identity for the gradient."""
    merged = layer.weight + layer.scale * layer.lora_b @ layer.lora_a
    return F.linear(x, merged + (merged * layer.keep - merged).detach(), layer.bias)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], **EXACT)


def compared(
    layer: LorsLinear, x: Tensor, forward: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the layer and of `forward`, for one random incoming gradient."""
    y = layer(x)
    torch.testing.assert_close(y, forward, **EXACT)
    outer = random(*y.shape, seed=7)
    return gradients(layer, x, y, outer), gradients(layer, x, forward, outer)


@BOTH_MASKS
@pytest.mark.parametrize("grad_mode", EXACT_MODES)
@pytest.mark.parametrize("bias", [False, True])
def test_exact_gradients_pass_finite_differences(grad_mode: str, derived: bool, bias: bool) -> None:
    layer = lors(grad_mode, derived=derived, bias=bias)

    def apply(x: Tensor, a: Tensor, b: Tensor, *added: Tensor) -> Tensor:
        return LorsFunction.apply(
            x, layer.weight, a, b, added[0] if added else None, layer.packed, layer.settings
        )

    given = [inputs(2, 3), layer.lora_a, layer.lora_b]
    assert gradcheck(apply, [*given, layer.bias] if bias else given)


@BOTH_MASKS
@pytest.mark.parametrize("grad_mode", EXACT_MODES)
@pytest.mark.parametrize("leading", [(7,), (2, 3), (2, 3, 2)], ids=["2d", "3d", "4d"])
def test_exact_gradients_are_those_of_the_masked_product(
    grad_mode: str, derived: bool, leading: tuple[int, ...]
) -> None:
    layer, x = lors(grad_mode, derived=derived, bias=True), inputs(*leading)
    assert_same(*compared(layer, x, exact_forward(layer, x)))


@BOTH_MASKS
@pytest.mark.parametrize("leading", [(7,), (2, 3), (2, 3, 2)], ids=["2d", "3d", "4d"])
def test_ste_is_autograd_through_a_straight_through_mask(
    derived: bool, leading: tuple[int, ...]
) -> None:
    layer, x = lors("ste", derived=derived, bias=True), inputs(*leading)
    assert_same(*compared(layer, x, straight_through_forward(layer, x)))


@BOTH_MASKS
def test_released_is_ste_without_the_scale_in_the_factors_only(derived: bool) -> None:
    layer, x = lors("released", derived=derived, bias=True), inputs(2, 3)
    got, expected = compared(layer, x, straight_through_forward(layer, x))
    for name in ("lora_a", "lora_b"):
        expected[name] = expected[name] / SCALE
    assert_same(got, expected)


def test_ste_is_not_the_exact_gradient() -> None:
    layer, x = lors("ste"), inputs(7)
    got, exact = compared(layer, x, exact_forward(layer, x))
    assert not torch.allclose(got["lora_a"], exact["lora_a"], rtol=0.1)
    torch.testing.assert_close(got["x"], exact["x"], **EXACT)


def test_a_mask_of_whole_rows_and_columns_makes_ste_exact() -> None:
    """On kept inputs of kept outputs; the mask then leaves the products re-associable."""
    layer, x = lors("ste"), inputs(7)
    rows, columns = torch.arange(OUTPUTS) % 3 != 0, torch.arange(INPUTS) % 4 != 0
    layer.set_effective_(random(OUTPUTS, INPUTS, seed=8), rows[:, None] & columns)
    with torch.no_grad():
        layer.lora_b.mul_(rows[:, None])
        layer.lora_a.mul_(columns)
    got, exact = compared(layer, x, exact_forward(layer, x))
    torch.testing.assert_close(got["lora_b"][rows], exact["lora_b"][rows], **EXACT)
    torch.testing.assert_close(got["lora_a"][:, columns], exact["lora_a"][:, columns], **EXACT)


def test_all_modes_share_forward_and_input_gradient_to_the_bit() -> None:
    x = inputs(2, 3)
    found = []
    for grad_mode in GRAD_MODES:
        layer = lors(grad_mode)
        y = layer(x)
        found.append((y, torch.autograd.grad(y, x, random(*y.shape, seed=7))[0]))
    for y, dx in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(dx, found[0][1])


def test_stored_and_derived_supports_give_the_same_bits() -> None:
    x = inputs(2, 3)
    found = []
    for derived in (False, True):
        layer = lors(derived=derived)
        y = layer(x)
        found.append({"y": y} | gradients(layer, x, y, random(*y.shape, seed=7)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_stored_support_keeps_weights_that_are_exactly_zero() -> None:
    layer = lors()
    row, column = layer.keep.nonzero()[0]
    with torch.no_grad():
        layer.weight[row, column] = 0
    update = layer.scale * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(layer.effective_weight()[row, column], update[row, column], **EXACT)


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_an_input_without_gradient_leaves_the_others_as_they_are(grad_mode: str) -> None:
    layer, x = lors(grad_mode), inputs(2, 3)
    outer = random(2, 3, OUTPUTS, seed=7)
    expected = gradients(layer, x, layer(x), outer)
    layer(x.detach()).backward(outer)
    assert torch.equal(layer.lora_a.grad, expected["lora_a"])
    assert torch.equal(layer.lora_b.grad, expected["lora_b"])


def test_factors_without_gradient_still_pass_one_to_the_input() -> None:
    layer, x = lors(), inputs(2, 3)
    layer.requires_grad_(False)
    outer = random(2, 3, OUTPUTS, seed=7)
    layer(x).backward(outer)
    torch.testing.assert_close(x.grad, outer @ layer.effective_weight(), **EXACT)
    assert layer.lora_a.grad is None


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_a_transposed_incoming_gradient_and_input_are_read_right(grad_mode: str) -> None:
    layer = lors(grad_mode)
    x = random(INPUTS, 3, 2, seed=6).permute(2, 1, 0).requires_grad_()
    outer = random(OUTPUTS, 3, 2, seed=7).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert not outer.is_contiguous()
    got = gradients(layer, x, layer(x), outer)
    expected = gradients(layer, x, layer(x.contiguous()), outer.contiguous())
    assert_same(got, expected)


def test_an_expanded_incoming_gradient_is_read_right() -> None:
    """sum() hands back one number for all entries."""
    layer, x = lors(), inputs(2, 3)
    got = gradients(layer, x, layer(x).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_same(got, gradients(layer, x, layer(x), torch.ones(2, 3, OUTPUTS).double()))


@pytest.mark.parametrize("grad_mode", EXACT_MODES)
def test_a_layer_may_be_called_twice_in_one_graph(grad_mode: str) -> None:
    layer = lors(grad_mode, outputs=INPUTS)
    x = inputs(2, 3)
    twice = exact_forward(layer, torch.tanh(exact_forward(layer, x)))
    outer = random(*twice.shape, seed=7)
    got = gradients(layer, x, layer(torch.tanh(layer(x))), outer)
    assert_same(got, gradients(layer, x, twice, outer))


def test_differentiating_twice_is_refused() -> None:
    layer, x = lors(), inputs(2, 3)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_weight_that_asks_for_its_gradient_is_refused() -> None:
    layer = lors()
    layer.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="forms no weight gradient; freeze the weight"):
        layer(inputs(2))


@BOTH_MASKS
@pytest.mark.parametrize("fuse_dtype", ["float32", "weight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_the_weight_is_never_written_to(
    grad_mode: str, dtype: torch.dtype, fuse_dtype: str, derived: bool
) -> None:
    layer = lors(grad_mode, derived=derived, dtype=dtype, fuse_dtype=fuse_dtype)
    before, version = layer.weight.clone(), layer.weight._version
    layer(inputs(2, 3, dtype=dtype)).sum().backward()
    layer.effective_weight()
    assert torch.equal(layer.weight, before)
    assert layer.weight._version == version


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_activation_checkpointing_changes_no_bit(grad_mode: str) -> None:
    layer, x = lors(grad_mode, bias=True), inputs(2, 3)
    outer = random(2, 3, OUTPUTS, seed=7)
    expected = gradients(layer, x, layer(x), outer)
    y = checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(y, layer(x))
    got = gradients(layer, x, y, outer)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_accumulated_micro_batches_are_one_batch(grad_mode: str) -> None:
    layer, x = lors(grad_mode, bias=True), inputs(4, 3)
    outer = random(4, 3, OUTPUTS, seed=7)
    whole = gradients(layer, x, layer(x), outer)
    for part in (slice(0, 1), slice(1, 4)):
        layer(x[part]).backward(outer[part])
    got = {n: p.grad for n, p in layer.named_parameters() if p.requires_grad} | {"x": x.grad}
    assert_same(got, whole)


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_under_autocast_values_and_gradients_are_bf16_close(grad_mode: str) -> None:
    """Two rounded operands and a rounded product; one product more in the factors' gradients."""
    layer, x = lors(grad_mode, dtype=torch.float32, bias=True), inputs(2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    outer = random(2, 3, OUTPUTS, seed=7).bfloat16()
    got = gradients(layer, x, y, outer)
    assert {g.dtype for g in got.values()} == {torch.float32}
    plain = layer(x)
    exact = gradients(layer, x, plain, outer.float())

    rows, d = x.detach().flatten(0, 1).abs(), outer.float().flatten(0, 1).abs()
    effective, a, b = (t.detach().abs() for t in (layer.effective_weight(), *factors(layer)))
    added = layer.bias.detach().abs()
    assert_within(y, plain, (rows @ effective.T + added).view(2, 3, -1), roundings=3)
    assert_within(got["x"], exact["x"], (d @ effective).view(2, 3, -1), roundings=3)
    assert_within(got["bias"], exact["bias"], d.sum(0), roundings=1)
    scale = 1.0 if grad_mode == "released" else SCALE
    assert_within(got["lora_b"], exact["lora_b"], scale * d.T @ (rows @ a.T), roundings=5)
    assert_within(got["lora_a"], exact["lora_a"], scale * (d @ b).T @ rows, roundings=5)


def test_autocast_fuses_in_fp32_and_rounds_once() -> None:
    layer = lors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        forward = layer(torch.eye(INPUTS))
        probe = torch.zeros(OUTPUTS, INPUTS, requires_grad=True)
        (backward,) = torch.autograd.grad(layer(probe), probe, torch.eye(OUTPUTS).bfloat16())
    assert torch.equal(forward.T, layer.effective_weight().bfloat16())
    assert torch.equal(backward, layer.effective_weight().bfloat16().float())


@pytest.mark.parametrize("engine", ["", "torch"])
def test_autocast_leaves_the_effective_weight_as_it_is(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", engine)
    layer = lors(dtype=torch.float32)
    expected = layer.effective_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.effective_weight(), expected)


def factors(layer: LorsLinear) -> tuple[Tensor, Tensor]:
    return layer.lora_a, layer.lora_b


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_bf16_weights_take_fp32_factors_and_give_them_fp32_gradients(grad_mode: str) -> None:
    layer, x = lors(grad_mode, dtype=torch.bfloat16), inputs(2, 3, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    got = gradients(layer, x, y, random(2, 3, OUTPUTS, seed=7).bfloat16())
    assert got["lora_a"].dtype == got["lora_b"].dtype == torch.float32
    assert got["x"].dtype == torch.bfloat16


@BOTH_MASKS
@pytest.mark.parametrize("fuse_dtype", ["float32", "weight"])
def test_forward_backward_and_fold_use_one_rounded_weight(fuse_dtype: str, derived: bool) -> None:
    layer = lors(dtype=torch.bfloat16, fuse_dtype=fuse_dtype, derived=derived)
    eye = torch.eye(INPUTS, dtype=torch.bfloat16).requires_grad_()
    forward = layer(eye)  # a product with the identity rounds nothing
    outer = torch.eye(OUTPUTS, dtype=torch.bfloat16)
    probe = torch.zeros(OUTPUTS, INPUTS, dtype=torch.bfloat16).requires_grad_()
    (backward,) = torch.autograd.grad(layer(probe), probe, outer)
    assert torch.equal(forward.T, layer.effective_weight())
    assert torch.equal(backward, layer.effective_weight())
    assert torch.equal(fold_linear(layer).weight, layer.effective_weight())
    wide = layer.weight.double() + SCALE * layer.lora_b.double() @ layer.lora_a.double()
    assert not torch.equal(backward.double(), wide * layer.keep)


def test_fusing_in_fp32_rounds_once() -> None:
    layer = lors(dtype=torch.bfloat16)
    weight, a, b = (t.detach().double() for t in (layer.weight, *factors(layer)))
    exact = (weight + SCALE * b @ a) * layer.keep
    assert_within(layer.effective_weight(), exact, exact.abs(), roundings=1)


def test_fusing_in_the_weights_dtype_also_rounds_the_factors() -> None:
    layer = lors(dtype=torch.bfloat16, fuse_dtype="weight")
    weight, a, b = (t.detach().double() for t in (layer.weight, *factors(layer)))
    a, b = a.bfloat16().double(), b.bfloat16().double()
    exact = (weight + SCALE * b @ a) * layer.keep
    assert_within(layer.effective_weight(), exact, exact.abs(), roundings=1)
    other = fused_weight(
        layer.weight, *factors(layer), layer.packed, replace(layer.settings, fuse_dtype="float32")
    )
    assert not torch.equal(layer.effective_weight(), other)


def test_the_two_dtypes_fuse_fp32_weights_alike() -> None:
    one, other = (lors(dtype=torch.float32, fuse_dtype=f) for f in ("float32", "weight"))
    assert torch.equal(one.effective_weight(), other.effective_weight())


@BOTH_MASKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_mode", GRAD_MODES)
def test_nothing_is_kept_for_backward_beyond_input_and_parameters(
    grad_mode: str, dtype: torch.dtype, derived: bool
) -> None:
    layer = lors(grad_mode, dtype=dtype, derived=derived, bias=True)
    assert saved_bytes(layer, inputs(2, 3, dtype=dtype)) == 0


@BOTH_MASKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_mode", ["ste", "released"])
def test_backward_makes_no_weight_shaped_tensor_but_the_weight_itself(
    grad_mode: str, dtype: torch.dtype, derived: bool
) -> None:
    """The merged weight; neither masks nor a product D^T X."""
    layer, x = lors(grad_mode, dtype=dtype, derived=derived), inputs(2, 4, dtype=dtype)
    y = layer(x)
    outer = random(*y.shape, seed=7, dtype=dtype)
    with Watch((OUTPUTS, INPUTS)) as watch:
        y.backward(outer)
    assert [name for name, _, _ in watch.made] == ["fused_weight"]


def test_a_tile_is_the_widest_gradient_that_exact_tiled_makes() -> None:
    layer, x = lors("exact_tiled"), inputs(2, 4)
    y = layer(x)
    outer = random(*y.shape, seed=7)
    with Watch((OUTPUTS, INPUTS)) as whole:
        y.backward(outer)
    assert whole.storages(floating=True, besides=layer.weight) == 1  # the rebuilt weight
    y = layer(x)
    with Watch((TILE, INPUTS)) as strips:
        y.backward(outer)
    products = [result for name, _, result in strips.made if name == "mm"]
    assert len(products) == OUTPUTS // TILE
    assert len({product.untyped_storage().data_ptr() for product in products}) == 1


@pytest.mark.parametrize("tile", [1, TILE, OUTPUTS, 1000])
def test_the_tile_does_not_matter(tile: int) -> None:
    layer, x = lors("exact"), inputs(2, 3)
    outer = random(2, 3, OUTPUTS, seed=7)
    expected = gradients(layer, x, layer(x), outer)
    layer.settings = replace(layer.settings, grad_mode="exact_tiled", tile_rows=tile)
    assert_same(gradients(layer, x, layer(x), outer), expected)


def test_tiles_are_summed_in_fp32_for_bf16_weights() -> None:
    """A sum of bf16 strips would lose what fp32 keeps: many small terms after a large one."""
    rows = 512
    settings = LorsSettings(1.0, "exact_tiled", 1, "float32", torch.bfloat16)
    weight = torch.ones(rows, 8, dtype=torch.bfloat16)
    keep = pack(torch.ones(rows, 8, dtype=torch.bool))
    a = torch.zeros(1, 8, requires_grad=True)
    b = torch.ones(rows, 1, requires_grad=True)
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    LorsFunction.apply(x, weight, a, b, None, keep, settings).sum().backward()
    assert torch.equal(a.grad, torch.full((1, 8), float(rows)))  # bf16 ends at 256


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def factor_cosines(gradient: Tensor, keep: Tensor, a: Tensor, b: Tensor) -> tuple[float, float]:
    """cos of ste and exact dA and dB, through the function itself with D^T X = gradient."""
    found = {}
    for grad_mode in ("ste", "exact"):
        settings = LorsSettings(1.0, grad_mode, 64, "float32", torch.float64)
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        x = torch.eye(gradient.shape[1], dtype=torch.float64)
        weight = torch.ones_like(gradient)
        y = LorsFunction.apply(x, weight, *leaves, None, pack(keep), settings)
        found[grad_mode] = torch.autograd.grad(y, leaves, gradient.T)
    return tuple(cosine(s, e) for s, e in zip(found["ste"], found["exact"], strict=True))


def decaying(size: int, seed: int) -> Tensor:
    """Random singular vectors under a spectrum of 1/k, as loss gradients decay."""
    u, _, vh = torch.linalg.svd(random(size, size, seed=seed))
    return u @ torch.diag(1 / torch.arange(1, size + 1, dtype=torch.float64)) @ vh


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("density", [0.5, 0.3, 0.2])
def test_unrelated_factors_see_the_gradient_at_a_cosine_of_root_density(
    density: float, seed: int
) -> None:
    """keep * G and G themselves have that cosine, and a random projection keeps it.

    A projection of a structureless 256 x 256 gradient to rank 8 has 2048 independent entries per
    factor: the cosine's standard error is 1 / sqrt(2048) = 0.022, four of which are allowed.
    """
    size, rank = 256, 8
    keep = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < density
    a, b = random(rank, size, seed=seed + 10), random(size, rank, seed=seed + 20)
    for value in factor_cosines(random(size, size, seed=seed + 30), keep, a, b):
        assert value == pytest.approx(density**0.5, abs=0.09)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("density", "flat"), [(0.5, 0.88), (0.3, 0.78), (0.2, 0.69)])
def test_factors_along_the_gradients_singular_vectors_see_much_more_of_it(
    density: float, flat: float, seed: int
) -> None:
    """`flat` is measured on structureless gradients; whatever structure there is adds to it."""
    size, rank = 256, 8
    keep = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < density
    structureless = random(size, size, seed=seed + 30)
    for gradient, structured in ((structureless, False), (decaying(size, seed), True)):
        u, _, vh = torch.linalg.svd(gradient)
        for value in factor_cosines(gradient, keep, vh[:rank], u[:, :rank]):
            # five times the spread over six seeds
            assert value > flat + 0.02 if structured else value == pytest.approx(flat, abs=0.03)


def test_bf16_gradients_are_close_to_exact_ones_of_the_same_weight() -> None:
    """bf16 values are exact operands, so only inner products and results round."""
    layer, x = lors(dtype=torch.bfloat16), inputs(2, 3, dtype=torch.bfloat16)
    outer = random(2, 3, OUTPUTS, seed=7).bfloat16()
    got = gradients(layer, x, layer(x), outer)
    rows, d = x.detach().double().flatten(0, 1), outer.double().flatten(0, 1)
    a, b = (t.detach().double() for t in factors(layer))
    effective = layer.effective_weight().detach().double()
    assert_within(
        got["x"],
        (d @ effective).view(2, 3, -1),
        (d.abs() @ effective.abs()).view(2, 3, -1),
        roundings=1,
    )
    # factor rounded, inner product rounded, result rounded
    assert_within(
        got["lora_b"],
        SCALE * d.T @ (rows @ a.T),
        SCALE * d.abs().T @ (rows.abs() @ a.abs().T),
        roundings=3,
    )
    assert_within(
        got["lora_a"],
        SCALE * (d @ b).T @ rows,
        SCALE * (d.abs() @ b.abs()).T @ rows.abs(),
        roundings=3,
    )


def test_unit_roundings_are_half_the_spacing_above_one() -> None:
    assert all(2 * unit == torch.finfo(dtype).eps for dtype, unit in UNIT.items())


def test_strips_of_bf16_factors_are_summed_in_fp32() -> None:
    """One rounding at the end; sums in bf16 would round with each of the 60 strips of five rows."""
    outputs = 300
    layer = lors("exact_tiled", dtype=torch.bfloat16, outputs=outputs)
    layer.lora_a.data = layer.lora_a.data.bfloat16()
    layer.lora_b.data = layer.lora_b.data.bfloat16()
    x = inputs(7, dtype=torch.bfloat16)
    d = random(7, outputs, seed=7).bfloat16()
    got = gradients(layer, x, layer(x), d)["lora_a"]
    # G of each strip is a product in bf16, as autograd's own is
    g = torch.cat([d[:, i : i + TILE].T @ x.detach() for i in range(0, outputs, TILE)])
    exact = SCALE * layer.lora_b.double().T @ (g * layer.keep).double()
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()
