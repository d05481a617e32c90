"""A packed linear on a card: its kernels under Triton's interpreter, and what replaces them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.triton_scripts import compile_for_cards, interpret, needs_linux, needs_triton
from torch import Tensor

from sparsemend.engine import choice, on_cuda
from sparsemend.engine.library import Factor
from sparsemend.engine.on_cuda import PROGRAMS, packed_linear_on_cuda, split
from sparsemend.engine.operator import check_factor
from sparsemend.engine.packed import pack_weight


@pytest.fixture
def undecided() -> Iterator[None]:
    """What was decided about a device is forgotten before and after."""
    on_cuda._works.cache_clear()
    yield
    on_cuda._works.cache_clear()


def arguments(rows: int = 5, columns: int = 37) -> tuple[Tensor, ...]:
    """(dense weight, the operator's mask, values and offsets)."""
    weight = (torch.arange(rows * columns).reshape(rows, columns) % 5 - 2).float()
    packed = pack_weight(weight, keep=None, values="float32")
    return weight, packed.mask, packed.values, packed.offsets


def test_the_columns_are_split_where_there_are_few_groups_of_rows() -> None:
    for groups, tiles, step in (
        (1024, 128, 32),
        (48, 18, 32),
        (48, 18, 8),
        (1, 343, 8),
        (3000, 1, 8),
    ):
        share, parts = split(groups, tiles, step)
        assert share % step == 0
        assert (parts - 1) * share < tiles <= parts * share
        assert groups * parts <= max(PROGRAMS, groups)
    assert split(1024, 128, 32) == (128, 1)
    assert split(256, 128, 32) == (32, 4)


def test_without_triton_torch_multiplies_after_one_warning(
    undecided: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    weight, *stored = arguments()
    for count in (1, 20):
        x = torch.randn(2, count, 37)
        with caplog.at_level(logging.WARNING):
            output = packed_linear_on_cuda(x, *stored, None, None, 5)
        assert torch.allclose(output, x @ weight.T, rtol=1e-5, atol=1e-5)
    (warning,) = [record.message for record in caplog.records]
    assert "multiplied as dense ones" in warning
    assert "pip install triton" in warning


def test_a_kernel_that_multiplies_wrongly_is_not_used(
    undecided: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(on_cuda, "multiply_on_cuda", lambda x, factor: x.new_ones(len(x), 5))
    weight, *stored = arguments()
    x = torch.randn(2, 37)
    output = packed_linear_on_cuda(x, *stored, None, None, 5)
    assert torch.allclose(output, x @ weight.T, rtol=1e-5, atol=1e-5)
    assert "come out wrong" in caplog.text


def test_torch_is_asked_for_without_a_warning(
    undecided: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(choice.KEY, "torch")
    weight, *stored = arguments()
    x = torch.randn(2, 37)
    assert torch.allclose(packed_linear_on_cuda(x, *stored, None, None, 5), x @ weight.T, atol=1e-5)
    assert not caplog.records


def test_a_weight_elsewhere_than_its_input_is_refused() -> None:
    _, mask, values, offsets = arguments()
    factor = Factor(mask, values.to("meta"), offsets, None, None, 5)
    with pytest.raises(ValueError, match="on meta and its input on cpu"):
        check_factor(factor, 37, torch.device("cpu"))


INTERPRETED = """
import torch
from sparsemend.engine import on_cuda
from sparsemend.engine.library import Factor
from sparsemend.engine.packed import pack_weight, unpack_weight

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2**-7}  # sums in another order; one rounding
CASES = [  # (rows, columns), values, dtype of tokens, their number, with a bias
    ((5, 70), "float32", torch.float32, 1, True),
    ((1, 1), "float32", torch.bfloat16, 3, False),
    ((6, 33), "bfloat16", torch.bfloat16, 8, True),
    ((5, 70), "int8", torch.bfloat16, 5, True),
    ((2, 1100), "bfloat16", torch.float32, 1, False),  # over two parts of the columns
    ((2, 300), "int8", torch.float32, 2, True),
    ((7, 70), "bfloat16", torch.bfloat16, 9, True),  # from here on: expanded
    ((6, 33), "int8", torch.bfloat16, 11, True),
    ((2, 1100), "float32", torch.float32, 10, False),
]
generator = torch.Generator().manual_seed(0)
on_cuda.SCRATCH = 4 * 64  # several blocks of rows
for shape, values, dtype, count, biased in CASES:
    weight = torch.randn(shape, generator=generator).bfloat16().float()
    weight *= torch.rand(shape, generator=generator) < 0.4
    weight[:, 0] = 1
    packed = pack_weight(weight, keep=None, values=values)
    bias = torch.randn(shape[0], generator=generator).bfloat16().float() if biased else None
    factor = Factor(packed.mask, packed.values, packed.offsets, packed.scale, bias, shape[0])
    tokens = torch.randn(count, shape[1], generator=generator).to(dtype)
    output = on_cuda.multiply_on_cuda(tokens, factor)
    expected = tokens.double() @ unpack_weight(packed).double().T
    expected = expected if bias is None else expected + bias
    assert output.dtype == dtype
    off = float((output - expected).norm() / expected.norm())
    assert off <= BOUNDS[dtype], (shape, values, dtype, count, off)
    if dtype == torch.bfloat16:  # a second rounding would change every tenth
        once = expected.float()
        if count <= on_cuda.FEW:  # the interpreter rounds to zero, a card to the nearest
            once = (once.view(torch.int32) & ~0xFFFF).view(torch.float32)
        assert int((output != once.bfloat16()).count_nonzero()) <= 1, (shape, values)
assert on_cuda._refusal(torch.device("cpu")) is None
"""


@pytest.mark.slow
@needs_triton
def test_the_triton_kernels_are_right_under_the_interpreter() -> None:
    interpret(INTERPRETED)


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsemend.engine.on_cuda import EXPANDED, TILES, WARPS, WORDS
from sparsemend.engine.triton_kernels import add, expand, multiply

POINTERS = {
    **dict(tokens="*bf16", mask="*i32", values="*i8", offsets="*i64", scale="*fp32"),
    **dict(bias="*fp32", output="*bf16", sums="*fp32"),
}
TILED = {"TILES": EXPANDED, "WORDS": WORDS}
FLAGS = {"SCALED": True, "BIASED": True}
for kernel, constants in (
    (multiply, {**FLAGS, "WORDS": WORDS, "SPLIT": False, "TOKENS": 8, "TILES": TILES[8]}),
    (add, {**FLAGS, "ROWS": 256}),
    (expand, TILED),
):
    kinds = {
        name: "constexpr" if name in constants else POINTERS.get(name, "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, kinds, constants)
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
    assert "atom." not in ptx  # sums have one order
    assert kernel is add or "popc.b32" in ptx  # the counting of ones is one instruction
    assert kernel is expand or "cvt.rn.bf16" in ptx  # to the nearest, ties to even
"""


@pytest.mark.slow
@needs_triton
@needs_linux
def test_the_triton_kernels_compile_for_a_card(tmp_path: Path) -> None:
    compile_for_cards(COMPILED, tmp_path)
