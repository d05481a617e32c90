"""Every form of the kernel gives the product of the stored values, as an fp64 product has it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsemend.engine.build import NoKernels
from sparsemend.engine.library import (
    AMX,
    FORMS,
    TILED,
    Factor,
    Kernels,
    best_form,
    load_kernels,
)
from sparsemend.engine.operator import FEW, multiply, multiply_expanded
from sparsemend.engine.packed import pack_weight, unpack_weight

# sums of floats in vectors; the norm of their error over that of the product
SUMS = 1e-6
HALF = 2**-8  # of the value at most: to the nearest bfloat16, which has 8 significant bits


def available() -> list[str]:
    try:
        library = load_kernels()
    except NoKernels:
        return []
    return list(FORMS[: FORMS.index(best_form(library)) + 1])


@pytest.fixture(params=FORMS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param not in available():
        pytest.skip(f"no compiler, or no processor for {request.param}")
    return Kernels(load_kernels(), request.param)


def case(
    shape: tuple[int, int], density: float, values: str, biased: bool = True
) -> tuple[Factor, Tensor, Tensor]:
    """Factor of a product, the weight that they stand for, and the bias, in fp64."""
    generator = torch.Generator().manual_seed(shape[1])
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand(shape, generator=generator) < density
    weight[shape[0] // 2] = 0
    bias = torch.randn(shape[0], generator=generator) if biased else torch.zeros(shape[0])
    if values == "bfloat16":
        weight = weight.bfloat16()
    packed = pack_weight(weight, keep=None, values=values)
    factor = Factor(
        packed.mask, packed.values, packed.offsets, packed.scale, bias if biased else None, shape[0]
    )
    return factor, unpack_weight(packed).double(), bias.double()


def inputs(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def error(output: Tensor, expected: Tensor) -> float:
    return float((output.double() - expected).norm() / (expected.norm() + 1e-30))


SHAPES = [(1, 1), (5, 37), (8, 64), (33, 1000), (6, 95)]


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_a_product_is_that_of_fp64(kernels: Kernels, values: str) -> None:
    for shape in SHAPES:
        for density in (0.0, 0.3, 1.0):
            factor, weight, bias = case(shape, density, values, biased=density != 1)
            for tokens in (1, 2, 3, 4, 7, 12):
                x = inputs(tokens, shape[1], torch.float32)
                expected = x.double() @ weight.T + bias
                assert error(kernels.multiply(x, factor), expected) <= SUMS, (
                    shape,
                    density,
                    tokens,
                )


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_a_bfloat16_product_is_rounded_once(kernels: Kernels, values: str) -> None:
    """No further from fp64 than half the last bit, but for the sums' own error."""
    for shape, density in ((shape, d) for shape in SHAPES for d in (0.0, 0.3, 1.0)):
        factor, weight, bias = case(shape, density, values)
        for tokens in (1, 3, 4, 5, 16, 33, 49):
            x = inputs(tokens, shape[1], torch.bfloat16)
            output = kernels.multiply(x, factor).double()
            expected = x.double() @ weight.T + bias
            sums = SUMS * (x.double().abs() @ weight.T.abs() + bias.abs())
            assert bool(((output - expected).abs() <= HALF * expected.abs() + sums).all())


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_the_sums_of_bfloat16_inputs_are_floats(kernels: Kernels, values: str) -> None:
    """A bias that takes the product away leaves its error, which bfloat16 can say."""
    for shape in SHAPES:
        factor, weight, _ = case(shape, 0.3, values)
        x = inputs(1, shape[1], torch.bfloat16)
        expected = x.double() @ weight.T
        left = kernels.multiply(x, replace(factor, bias=-expected[0].float())).double()
        assert float(left.norm()) <= SUMS * float(expected.norm())


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_an_expanded_product_is_the_same(kernels: Kernels, values: str) -> None:
    for shape in SHAPES:
        factor, weight, bias = case(shape, 0.3, values)
        x = inputs(11, shape[1], torch.float32)
        assert error(multiply_expanded(kernels, x, factor), x.double() @ weight.T + bias) <= SUMS
        x = x.bfloat16()
        expected = x.double() @ weight.T + bias
        # torch's product is rounded to bfloat16, and int8 once more after scale and bias
        assert error(multiply_expanded(kernels, x, factor), expected) <= 2 * HALF


def test_an_expansion_goes_block_by_block(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsemend.engine.operator.SCRATCH", 2 * 4 * 64)  # two groups of four rows
    factor, weight, bias = case((21, 64), 0.5, "float32")
    x = inputs(9, 64, torch.float32)
    assert error(multiply_expanded(kernels, x, factor), x.double() @ weight.T + bias) <= SUMS


def test_our_dense_product_is_that_of_fp64(kernels: Kernels) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for rows, columns in SHAPES:
            weight = inputs(rows, columns, dtype)
            x = inputs(3, columns, torch.float32)
            factor = Factor(None, weight, None, None, None, rows)
            assert error(kernels.multiply(x, factor), x.double() @ weight.double().T) <= SUMS


def test_a_token_has_the_same_bits_in_any_company_and_on_any_threads(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor, _, _ = case((33, 1000), 0.3, "bfloat16")
    for dtype in (torch.float32, torch.bfloat16):
        few = TILED - 1 if kernels.form == AMX else FEW[torch.bfloat16]
        x = inputs(few, 1000, dtype)
        together = kernels.multiply(x, factor)
        assert torch.equal(torch.cat([kernels.multiply(t, factor) for t in x.split(1)]), together)
        assert torch.equal(torch.cat([kernels.multiply(t, factor) for t in x.split(3)]), together)
        monkeypatch.setattr("sparsemend.engine.library.threads", lambda weights: 3)
        assert torch.equal(kernels.multiply(x, factor), together)
        monkeypatch.undo()


@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_tiles_give_a_token_the_same_bits_in_any_company_and_on_any_threads(
    values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile of tokens, two, many, and more than share one expansion."""
    if AMX not in available():
        pytest.skip("no processor for it")
    kernels = Kernels(load_kernels(), AMX)
    for shape in ((33, 300), (290, 40)):
        factor, weight, bias = case(shape, 0.3, values)
        x = inputs(300, shape[1], torch.bfloat16)
        together = kernels.multiply(x, factor)
        expected = x.double() @ weight.T + bias
        assert error(together, expected) <= HALF
        for size in (5, 16, 20, 40, 256 + 17):
            assert torch.equal(kernels.multiply(x[-size:].clone(), factor), together[-size:])
        monkeypatch.setattr("sparsemend.engine.library.threads", lambda weights: 3)
        assert torch.equal(kernels.multiply(x, factor), together)
        monkeypatch.undo()


def test_factors_that_bfloat16_would_round_are_multiplied_without_tiles() -> None:
    if AMX not in available():
        pytest.skip("no processor for it")
    kernels = Kernels(load_kernels(), AMX)
    for values, dtype in (("float32", torch.bfloat16), ("bfloat16", torch.float32)):
        factor, weight, bias = case((33, 100), 0.3, values)
        for tokens in (7, 70):
            x = inputs(tokens, 100, dtype)
            expected = x.double() @ weight.T + bias
            bound = SUMS if dtype == torch.float32 else HALF
            assert error(multiply(kernels, x, factor), expected) <= bound


def test_an_infinite_input_is_what_a_dense_product_makes_of_it(kernels: Kernels) -> None:
    factor, weight, _ = case((5, 37), 0.3, "float32")
    x = inputs(1, 37, torch.float32)
    x[0, 3] = float("inf")
    dense = x @ weight.float().T
    assert torch.equal(kernels.multiply(x, factor).isnan(), dense.isnan())


def test_a_product_leaves_nothing_to_the_next(kernels: Kernels) -> None:
    """Inputs are copied into memory that is kept, whose rest of a tile meets weights of zero."""
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (2, 7, 40):
            longer, _, _ = case((6, 96), 0.3, "bfloat16")
            kernels.multiply(torch.full((tokens, 96), float("nan"), dtype=dtype), longer)
            factor, _, _ = case((5, 37), 0.3, "bfloat16")
            assert kernels.multiply(inputs(tokens, 37, dtype), factor).isfinite().all()


def test_torch_multiplies_where_there_are_no_kernels() -> None:
    for values in ("float32", "bfloat16", "int8"):
        factor, weight, bias = case((33, 100), 0.3, values)
        for tokens in (1, 70):
            x = inputs(tokens, 100, torch.float32)
            assert error(multiply(None, x, factor), x.double() @ weight.T + bias) <= SUMS
            x = x.bfloat16()
            expected = x.double() @ weight.T + bias
            assert error(multiply(None, x, factor), expected) <= 2 * HALF
