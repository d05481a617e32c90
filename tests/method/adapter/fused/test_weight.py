"""One operator forms keep * (W + s B A), whatever computes it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import product

import pytest
import torch
from support.layers import random
from torch import Tensor

from sparsemend.method.adapter.fused import kernels
from sparsemend.method.adapter.fused.kernels import FORMS, FusedKernel, fits, kernel_for
from sparsemend.method.adapter.fused.plain import STRIP_ROWS, form_in_strips
from sparsemend.method.adapter.fused.weight import OPERATOR, bytes_moved
from sparsemend.sparse.packing import pack

SHAPES = [(1, 20), (3, 16), (7, 65), (STRIP_ROWS + 1, 100), (300, 192)]  # (outputs, inputs)
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
    best = kernels._kernel("")
    if best is None:
        pytest.skip("no compiler, or neither AVX2 nor AVX-512")
    return [FusedKernel(best.library, form) for form in FORMS[1 : FORMS.index(best.form) + 1]]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_kernel_gives_the_bits_that_torch_gives(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    for (rows, columns), rank, base in product(SHAPES, (1, 3, 16), (1.0, 0.0)):
        weight, a, b, keep = case(rows, columns, rank, dtypes[0])
        for packed in (pack(keep), None):
            plain = form_in_strips(weight, a, b, packed, base=base, dtype=dtypes[1])
            assert not plain[~keep].any()
            for kernel in available():
                formed = kernel.form_weight(weight, a, b, packed, base=base, dtype=dtypes[1])
                assert torch.equal(formed, plain), (kernel.form, rows, columns, rank, base)


def test_threads_change_no_bit() -> None:
    weight, a, b, keep = case(640, 512, 16, torch.bfloat16)
    (*_, kernel), before = available(), torch.get_num_threads()
    formed = []
    for count in (1, 2):
        torch.set_num_threads(count)
        formed.append(kernel.form_weight(weight, a, b, pack(keep), base=1.0, dtype=torch.bfloat16))
    torch.set_num_threads(before)
    assert torch.equal(*formed)


def test_what_is_not_finite_stays_so_on_the_support_and_is_zero_off_it() -> None:
    weight, a, b, keep = case(6, 70, 2, torch.float32)
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        weight[row] = value
    weight.view(torch.int32)[3] = 0x7FFFFFFF  # a NaN that rounding would carry into minus zero
    for kernel, dtype in product(available(), (torch.float32, torch.bfloat16)):
        formed = kernel.form_weight(weight, a, b, pack(keep), base=1.0, dtype=dtype)
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
    narrow = slice(kernels.LEAST_COLUMNS - 1)
    few = (weight[:, narrow].contiguous(), a[:, narrow].contiguous(), b, None)
    assert not fits(*few, torch.float32)


def test_torch_forms_the_weight_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "torch")
    assert kernel_for(16) is None


def test_a_kernel_that_gives_other_bits_than_torch_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = available()[-1]
    monkeypatch.setattr(kernels, "form_in_strips", lambda w, *_, **__: w)
    assert not kernels._agrees.__wrapped__(kernel, 16)
    monkeypatch.undo()
    assert kernels._agrees.__wrapped__(kernel, 16)


def test_a_7b_projection_in_bf16_moves_few_bytes_per_weight() -> None:
    assert bytes_moved(4096, 4096, 16, itemsize=2) / 4096**2 == pytest.approx(4.156, abs=1e-3)


INTERPRETED = """
import torch
from sparsemend.method.adapter.fused.on_cuda import form_on_cuda
from sparsemend.method.adapter.fused.plain import form_in_strips
from sparsemend.sparse.packing import pack
generator = torch.Generator().manual_seed(0)
weight, a, b, score = (
    torch.randn(s, generator=generator) for s in ((70, 90), (3, 90), (70, 3), (70, 90))
)
for base in (1.0, 0.0):
    for packed in (pack(score > 0), None):
        ours = form_on_cuda(weight, a, b, packed, base=base, dtype=torch.float32)
        plain = form_in_strips(weight, a, b, packed, base=base, dtype=torch.float32)
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)
        assert not ours[plain == 0].any()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_is_right_under_its_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True)
