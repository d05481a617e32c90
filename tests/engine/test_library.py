"""Every form of the kernel gives the product of the stored values, as an fp64 product has it."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from sparsemend.engine import operator
from sparsemend.engine.build import MAIN, SOURCE, NoKernels, compiled_library
from sparsemend.engine.library import (
    AMX,
    FORMS,
    PAIRS,
    TILED,
    Factor,
    Kernels,
    best_form,
    load_kernels,
)
from sparsemend.engine.operator import (
    FEW,
    FEW_PAIRS,
    most_sparse,
    multiply,
    multiply_expanded,
)
from sparsemend.engine.packed import pack_weight, unpack_weight

# sums of floats in vectors; the norm of their error over that of the product
SUMS = 1e-6
BYTES = (PAIRS, "int8")  # multiplied in pairs from TILED on, too
HALF = 2**-8  # of the value at most: to the nearest bfloat16, which has 8 significant bits


# in amx.h and engine.cpp: what a processor without tiles does otherwise
TILES_EMULATED = {
    '#include "amx.h"': '#include "tiles.h"\n#include "amx.h"',
    'asm volatile("ldtilecfg %0" : : "m"(bytes))': "emulated::load_config(&bytes)",
    'asm volatile("sttilecfg %0" : "=m"(former))': "emulated::store_config(&former)",
    "inline bool ask() {": "inline bool ask() {\n  return true;",
}


def available() -> list[str]:
    """The forms that run here; AMX also where its tiles alone are missing, and are emulated."""
    try:
        best = best_form(load_kernels())
    except NoKernels:
        return []
    return list(FORMS[: FORMS.index(best) + 1 + (best == "avx512_bf16")])


def library_for(form: str) -> ctypes.CDLL:
    library = load_kernels()
    return (
        library if form in FORMS[: FORMS.index(best_form(library)) + 1] else with_emulated_tiles()
    )


@cache
def with_emulated_tiles() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        source = Path(shutil.copytree(SOURCE, Path(folder) / "source"))
        shutil.copy(Path(__file__).with_name("tiles.h"), source)
        text = {file: (source / file).read_text() for file in (MAIN, "amx.h")}
        for before, after in TILES_EMULATED.items():
            assert sum(t.count(before) for t in text.values()) == 1
            text = {file: t.replace(before, after) for file, t in text.items()}
        for file, changed in text.items():
            (source / file).write_text(changed)
        return ctypes.CDLL(str(compiled_library(source / MAIN)))


def kernels_of(form: str) -> Kernels:
    if form not in available():
        pytest.skip(f"no compiler, or no processor for {form}")
    return Kernels(library_for(form), form)


@pytest.fixture(params=FORMS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


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


def test_one_scratch_serves_all_expansions_of_a_thread(kernels: Kernels) -> None:
    """It grows, stays, and serves what is made in inference mode and used outside of it."""
    operator._kept.__dict__.clear()
    addresses = []
    for shape in [(21, 64), (40, 70), (21, 64), (40, 70)]:
        factor, weight, bias = case(shape, 0.5, "float32")
        x = inputs(9, shape[1], torch.float32)
        with torch.inference_mode(len(addresses) == 1):
            result = multiply_expanded(kernels, x, factor)
        assert error(result, x.double() @ weight.T + bias) <= SUMS
        addresses.append(operator._kept.scratch.data_ptr())
    assert len(set(addresses[1:])) == 1
    factor, weight, bias = case((21, 64), 0.5, "bfloat16")
    x = inputs(9, 64, torch.bfloat16)
    assert error(multiply_expanded(kernels, x, factor), x.double() @ weight.T + bias) <= 2 * HALF


def test_our_dense_product_is_that_of_fp64(kernels: Kernels) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for rows, columns in SHAPES:
            weight = inputs(rows, columns, dtype)
            x = inputs(3, columns, torch.float32)
            factor = Factor(None, weight, None, None, None, rows)
            assert error(kernels.multiply(x, factor), x.double() @ weight.double().T) <= SUMS


@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_a_token_has_the_same_bits_in_any_company_and_on_any_threads(
    kernels: Kernels, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in companies whose weights are spread once, and of more than one batch."""
    factor, _, _ = case((33, 1100), 0.3, values)  # more columns than are spread at a time
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs(70, 1100, dtype)
        sizes = [1, 3, 4, 7, 17]
        if dtype == torch.bfloat16 and (kernels.form == AMX or (kernels.form, values) == BYTES):
            x, sizes = x[: TILED - 1], [1, 3]  # above, tiles or pairs
        together = kernels.multiply(x, factor)
        for size in sizes:
            apart = [kernels.multiply(part, factor) for part in x.split(size)]
            assert torch.equal(torch.cat(apart), together)
        monkeypatch.setattr("sparsemend.engine.library.threads", lambda weights: 3)
        assert torch.equal(kernels.multiply(x, factor), together)
        monkeypatch.undo()


def test_int8_codes_in_pairs_give_a_token_the_same_bits_in_any_company() -> None:
    kernels = kernels_of(PAIRS)
    factor, weight, bias = case((33, 1100), 0.3, "int8")
    x = inputs(70, 1100, torch.bfloat16)
    together = kernels.multiply(x, factor)
    assert error(together, x.double() @ weight.T + bias) <= HALF
    for size in (5, 16, 20):
        assert torch.equal(kernels.multiply(x[-size:].clone(), factor), together[-size:])


@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_tiles_give_a_token_the_same_bits_in_any_company_and_on_any_threads(
    values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile of tokens, two, many, and more than share one expansion."""
    kernels = kernels_of(AMX)
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
    kernels = kernels_of(AMX)
    for values, dtype in (("float32", torch.bfloat16), ("bfloat16", torch.float32)):
        factor, weight, bias = case((33, 100), 0.3, values)
        for tokens in (7, 70):
            x = inputs(tokens, 100, dtype)
            expected = x.double() @ weight.T + bias
            bound = SUMS if dtype == torch.float32 else HALF
            assert error(multiply(kernels, x, factor), expected) <= bound


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_an_input_that_is_not_finite_is_what_a_dense_product_makes_of_it(
    kernels: Kernels, values: str
) -> None:
    """0 * inf is NaN, where a weight was dropped as where it is zero."""
    factor, weight, _ = case((5, 37), 0.3, values, biased=False)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 4, 7, 70):
            x = inputs(tokens, 37, dtype)
            x[0, 3], x[-1, 36] = float("inf"), float("nan")
            dense = x.float() @ weight.float().T
            for product in (kernels.multiply(x, factor), multiply(kernels, x, factor)):
                assert torch.equal(product.isnan(), dense.isnan())
                assert torch.equal(product.isinf(), dense.isinf())


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_a_product_writes_its_outputs_and_nothing_beside_them(
    kernels: Kernels, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, mark = 4096, 77.0
    kept: list[Tensor] = []

    def guarded(tokens: Tensor, count: int, rows: int) -> Tensor:
        kept.append(torch.full((guard + count * rows + guard,), mark, dtype=tokens.dtype))
        return kept[-1][guard:-guard].view(count, rows)

    monkeypatch.setattr(Tensor, "new_empty", guarded)
    for shape in SHAPES:
        factor, _, _ = case(shape, 0.3, values)
        for dtype in (torch.float32, torch.bfloat16):
            for tokens in (1, 2, 3, 5, 16, 17, 40, 257):
                output = kernels.multiply(inputs(tokens, shape[1], dtype), factor)
                assert not (output == mark).any()
                assert (kept[-1][:guard] == mark).all()
                assert (kept[-1][-guard:] == mark).all()


def test_tensors_may_lie_at_any_byte(kernels: Kernels) -> None:
    """A file that another program wrote is mapped as it lies."""

    def shifted(tensor: Tensor) -> Tensor:
        memory = bytearray(tensor.nbytes + 1)
        memory[1:] = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        count = tensor.numel()
        return torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=1).view(
            tensor.shape
        )

    for values in ("float32", "bfloat16", "int8"):
        factor, _, _ = case((33, 1000), 0.3, values)
        parts = {"mask": shifted(factor.mask), "values": shifted(factor.values)}
        parts["scale"] = None if factor.scale is None else shifted(factor.scale)
        for tokens in (1, 2, 7):
            x = inputs(tokens, 1000, torch.bfloat16)
            product = kernels.multiply(x, factor)
            assert torch.equal(kernels.multiply(shifted(x), replace(factor, **parts)), product)


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


def test_more_tokens_are_multiplied_sparse_where_that_is_faster() -> None:
    few = FEW[torch.bfloat16]
    assert most_sparse(PAIRS, torch.bfloat16) == FEW_PAIRS > few
    assert most_sparse(PAIRS, torch.float32) == FEW[torch.float32]
    assert most_sparse("avx512", torch.bfloat16) == few
