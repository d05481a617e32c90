"""One operator forms keep * (W + s B A), whatever computes it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layers import random
from support.triton_scripts import compile_for_cards, interpret, needs_linux, needs_triton
from torch import Tensor

from sparsemend.engine.build import NoKernels, load_library
from sparsemend.method.adapter.fused import kernels, on_cuda
from sparsemend.method.adapter.fused.kernels import FORMS, FusedKernel, fits, kernel
from sparsemend.method.adapter.fused.plain import STRIP_ROWS, form_in_strips
from sparsemend.method.adapter.fused.weight import OPERATOR, bytes_moved
from sparsemend.sparse.packing import pack

SHAPES = [
    (1, 1),
    (1, 20),
    (5, 2),
    (7, 65),
    (9, 1),
    (STRIP_ROWS + 1, 100),
    (300, 192),
]  # (outputs, inputs)
DTYPES = [  # of the weight, and of what is formed
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]


def case(rows: int, columns: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """W, zero off the support; A, B and keep."""
    keep = random(rows, columns, seed=1) > 0
    weight = (random(rows, columns, seed=2) * keep).to(dtype)
    a, b = (random(*s, seed=3, dtype=torch.float32) for s in ((rank, columns), (rows, rank)))
    return weight, a, b, keep


def available() -> list[FusedKernel]:
    """The kernels of every form that this processor can run; the test is skipped where none can."""
    try:
        library = load_library(kernels.MAIN)
    except NoKernels as reason:
        pytest.skip(str(reason))
    if not (best := library.sparsemend_fuse_form()):
        pytest.skip("neither AVX2 nor AVX-512")
    return [FusedKernel(library, form) for form in FORMS[1 : best + 1]]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_kernel_gives_what_torch_gives(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Bit for bit where the sums over the rank are exact, whatever their order."""
    for (rows, columns), rank, base in product(SHAPES, (1, 3, 16, 70), (1.0, 0.0)):
        weight, a, b, keep = case(rows, columns, rank, dtypes[0])
        a, b = (a * 4).round(), (b * 4).round()
        for packed in (pack(keep), None):
            plain = form_in_strips(weight, a, b, packed, base=base, dtype=dtypes[1])
            assert not plain[~keep].any()
            for one in available():
                formed = one.form_weight(weight, a, b, packed, base=base, dtype=dtypes[1])
                assert torch.equal(formed, plain), (one.form, rows, columns, rank, base)


def test_every_kernel_rounds_a_sum_as_often_as_it_has_terms() -> None:
    for (rows, columns), rank in product(SHAPES, (1, 16, 200)):
        weight, a, b, keep = case(rows, columns, rank, torch.float32)
        exact = (weight.double() + b.double() @ a.double()) * keep
        bound = (rank + 1) * 2**-24 * (weight.abs().double() + b.abs().double() @ a.abs().double())
        for one in available():
            formed = one.form_weight(weight, a, b, pack(keep), base=1.0, dtype=torch.float32)
            assert ((formed - exact).abs() <= bound).all(), (one.form, rows, columns, rank)


def test_threads_change_no_bit() -> None:
    weight, a, b, keep = case(640, 512, 16, torch.bfloat16)
    (*_, one), before = available(), torch.get_num_threads()
    formed = []
    for count in (1, 2):
        torch.set_num_threads(count)
        formed.append(one.form_weight(weight, a, b, pack(keep), base=1.0, dtype=torch.bfloat16))
    torch.set_num_threads(before)
    assert torch.equal(*formed)


def test_what_is_not_finite_stays_so_on_the_support_and_is_zero_off_it() -> None:
    weight, a, b, keep = case(6, 70, 2, torch.float32)
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        weight[row] = value
    weight.view(torch.int32)[3] = 0x7FFFFFFF  # a NaN that rounding would carry into minus zero
    for one, dtype in product(available(), (torch.float32, torch.bfloat16)):
        formed = one.form_weight(weight, a, b, pack(keep), base=1.0, dtype=dtype)
        assert not formed[~keep].any()
        for row, is_so in enumerate((torch.isnan, torch.isposinf, torch.isneginf, torch.isnan)):
            assert is_so(formed[row][keep[row]]).all()


def test_the_operator_rounds_float32_sums_once() -> None:
    weight, a, b, keep = case(40, 100, 5, torch.bfloat16)
    settings = (pack(keep), 1.7, 1.0, torch.float32, torch.bfloat16)
    exact = ((weight.double() + 1.7 * b.double() @ a.double()) * keep).bfloat16()
    formed = OPERATOR(weight, a, b, *settings)
    # fp32 sums are 2^-15 of a bf16 spacing off; a second rounding to bf16 changes a tenth of them
    assert int((formed != exact).count_nonzero()) <= 2
    assert not formed[~keep].any()


def test_a_kernel_takes_only_what_it_can_read() -> None:
    weight, a, b, keep = case(8, 16, 2, torch.float32)
    packed = pack(keep)
    assert fits(weight, a, b, packed, torch.bfloat16)
    assert not fits(weight.T.contiguous().T, a, b, packed, torch.float32)
    assert not fits(weight.bfloat16(), a, b, packed, torch.float32)
    assert not fits(weight.double(), a, b, packed, torch.float64)
    assert not fits(weight, a.double(), b.double(), packed, torch.float32)
    assert not fits(weight, a[:0], b[:, :0], packed, torch.float32)


def test_tensors_of_other_shapes_are_refused_before_anything_reads_them() -> None:
    weight, a, b, keep = case(8, 20, 2, torch.float32)
    settings = (1.7, 1.0, torch.float32, torch.float32)
    for wrong in ((a[:, 1:], b), (a, b[1:]), (a[1:], b)):
        with pytest.raises(ValueError, match=r"no factors of a weight of 8 x 20; .* \(rank, 20\)"):
            OPERATOR(weight, *wrong, pack(keep), *settings)
    for packed in (pack(keep)[1:], pack(keep)[:, 1:], pack(keep).int()):
        with pytest.raises(ValueError, match=r"8 x 20 weights is uint8 \(8, 3\), not torch"):
            OPERATOR(weight, a, b, packed, *settings)


def test_torch_forms_the_weight_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "torch")
    assert kernel() is None


def test_triton_leaves_it_to_torch_too_where_torch_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(on_cuda, "_works", lambda device: True)
    weight, a, b, keep = case(8, 16, 2, torch.float32)
    assert on_cuda.fits_cuda(weight, a, b, pack(keep))
    monkeypatch.setenv("SPARSEMEND_ENGINE", "torch")
    assert not on_cuda.fits_cuda(weight, a, b, pack(keep))


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "avx")
    with pytest.raises(ValueError, match="SPARSEMEND_ENGINE=avx is not one of: portable, avx2"):
        kernel()


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()
    right = FusedKernel.form_weight
    for wrong in DTYPES[:3]:

        def form(
            *operands: Any, dtype: torch.dtype, wrong: torch.dtype = wrong[1], **more: Any
        ) -> Any:
            return right(*operands, dtype=dtype, **more) + (dtype == wrong)

        monkeypatch.setattr(FusedKernel, "form_weight", form)
        assert kernels._kernel.__wrapped__("") is None
    monkeypatch.undo()
    assert kernels._kernel.__wrapped__("") is not None


def test_a_7b_projection_in_bf16_moves_few_bytes_per_weight() -> None:
    assert bytes_moved(4096, 4096, 16, itemsize=2) / 4096**2 == pytest.approx(4.156, abs=1e-3)


INTERPRETED = """
import torch
from sparsemend.method.adapter.fused.on_cuda import form_on_cuda
from sparsemend.method.adapter.fused.plain import form_in_strips
from sparsemend.sparse.packing import pack
generator = torch.Generator().manual_seed(0)
for rows, columns, rank in ((70, 90, 3), (1, 1, 1), (3, 200, 70)):
    shapes = ((rows, columns), (rank, columns), (rows, rank), (rows, columns))
    weight, a, b, score = (torch.randn(s, generator=generator) for s in shapes)
    weight[score <= 0] = float("nan")
    for base in (1.0, 0.0):
        for packed in (pack(score > 0), None):
            operands = weight if packed is not None else weight.nan_to_num(0)
            ours = form_on_cuda(operands, a, b, packed, base=base, dtype=torch.float32)
            plain = form_in_strips(operands, a, b, packed, base=base, dtype=torch.float32)
            assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5)
            assert not ours[score <= 0].any()
"""


@pytest.mark.slow
@needs_triton
def test_the_triton_kernel_is_right_under_its_interpreter() -> None:
    interpret(INTERPRETED)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsemend.method.adapter.fused.on_cuda import COLUMNS, MOST_RANK, ROWS
from sparsemend.method.adapter.fused.triton_kernel import fuse

POINTERS = dict(weight="*bf16", keep="*u8", a="*fp32", b="*fp32", output="*bf16")
constants = dict(PACKED=True, BASE=True, ROWS=ROWS, COLUMNS=COLUMNS, RANK=MOST_RANK)
kinds = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in fuse.arg_names}
for capability in (75, 80, 90):
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(ASTSource(fuse, kinds, constants), target=target)
    assert compiled.metadata.shared <= 48 * 1024
    assert "mma" not in compiled.asm["ptx"]  # sums are float32, not TF32
"""


@pytest.mark.slow
@needs_triton
@needs_linux
def test_the_triton_kernel_fits_every_card_at_any_rank(tmp_path: Path) -> None:
    compile_for_cards(COMPILED, tmp_path)
