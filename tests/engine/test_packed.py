"""A packed weight gives its values back bit by bit, in the size that was promised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsemend.engine.packed import PADDING, keep_of, pack_weight, quantise, unpack_weight

SHAPES = [(1, 1), (4, 32), (5, 37), (3, 64), (9, 31)]


def sparse(shape: tuple[int, int], density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    return (weight * (torch.rand(shape, generator=generator) < density)).to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    bits = torch.int32 if one.element_size() == 4 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_a_packed_weight_comes_back_bit_by_bit(values: str, density: float) -> None:
    for shape in SHAPES:
        weight = sparse(shape, density, getattr(torch, values)) + 0.0
        weight[shape[0] // 2] = 0
        packed = pack_weight(weight, keep=None, values=values)
        packed.check("x")
        assert same_bits(unpack_weight(packed), weight)
        assert packed.stored == int(weight.count_nonzero())


def test_a_kept_zero_is_stored_with_its_sign() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -0.0]])
    keep = torch.tensor([[True, True, False, False]])
    packed = pack_weight(weight.masked_fill(~keep, -0.0), keep=keep, values="float32")
    assert packed.stored == 2
    assert torch.equal(keep_of(packed.mask, packed.shape), keep)
    assert same_bits(unpack_weight(packed), torch.tensor([[0.0, -0.0, 0.0, 0.0]]))


def test_without_a_support_a_minus_zero_is_a_zero() -> None:
    packed = pack_weight(torch.tensor([[-0.0, 2.0]]), keep=None, values="float32")
    assert packed.stored == 1
    assert same_bits(unpack_weight(packed), torch.tensor([[0.0, 2.0]]))


def test_masks_and_values_lie_in_the_order_of_the_page() -> None:
    weight = torch.zeros(5, 33)
    weight[0, 1], weight[0, 32], weight[3, 0], weight[4, 31] = 1, 2, 3, 4
    packed = pack_weight(weight, keep=None, values="float32")
    assert packed.mask.tolist() == [[[2, 0, 0, 1], [1, 0, 0, 0]], [[-(2**31), 0, 0, 0], [0] * 4]]
    assert packed.values.tolist() == [1.0, 3.0, 2.0, 4.0, *[0.0] * PADDING]
    assert packed.offsets.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("values", "width", "side"), [("float32", 4, 128), ("bfloat16", 2, 128), ("int8", 1, 512)]
)
def test_the_size_is_a_bit_per_weight_and_the_values(values: str, width: int, side: int) -> None:
    weight = sparse((side, side), 0.3, torch.float32 if values == "float32" else torch.bfloat16)
    packed = pack_weight(weight, keep=None, values=values)
    asked = weight.numel() / 8 + width * int(weight.count_nonzero())
    assert asked <= packed.nbytes <= 1.03 * asked


def test_int8_codes_are_the_nearest_to_the_weight_over_its_row_scale() -> None:
    weight = torch.tensor([[0.0, 254.0, -127.0, 1.1], [0.0, 0.0, 0.0, 0.0]])
    codes, scale = quantise(weight)
    assert codes.tolist() == [[0, 127, -64, 1], [0, 0, 0, 0]]  # -63.5 to even
    assert scale.tolist() == [2.0, 0.0]


def test_a_kept_weight_whose_code_is_zero_stays_stored() -> None:
    weight = torch.tensor([[1000.0, 0.001]])
    packed = pack_weight(weight, keep=None, values="int8")
    assert packed.stored == 2
    assert unpack_weight(packed).tolist() == [[1000.0, 0.0]]


@pytest.mark.parametrize(
    ("weight", "keep", "values", "words"),
    [
        (torch.tensor([[float("nan"), 1.0]]), None, "float32", "1 weights are not finite"),
        (torch.tensor([[float("inf"), 1.0]]), None, "int8", "1 weights are not finite"),
        (torch.ones(1, 2), torch.tensor([[True, False]]), "float32", "1 weights off the support"),
        (torch.ones(1, 2), torch.ones(2, 2).bool(), "float32", r"bool of shape \(1, 2\)"),
        (torch.ones(1, 2).half(), None, "float32", "model.bfloat16"),
        (torch.ones(2), None, "float32", "matrix"),
        (torch.ones(0, 2), None, "float32", "nothing to pack"),
        (torch.full((1, 1), 1.001), None, "bfloat16", "would be rounded"),
        (torch.ones(1, 1), None, "int4", "float32, bfloat16, int8"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    weight: Tensor, keep: Tensor | None, values: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pack_weight(weight, keep=keep, values=values)


def test_parts_that_contradict_each_other_are_refused() -> None:
    packed = pack_weight(sparse((5, 37), 0.5), keep=None, values="float32")
    beyond = packed.mask.clone()
    bit = int(beyond[1, 1, 3])
    assert bit == 0
    beyond[1, 1, 3] = 1  # row 7 of 5
    grown = torch.cat([packed.values, packed.values.new_zeros(1)])
    for damaged, words in [
        (replace(packed, mask=packed.mask[:1]), r"int32 \(2, 2, 4\)"),
        (replace(packed, values=packed.values[1:]), "the file is damaged"),
        (replace(packed, values=packed.values.half()), "not torch.float16"),
        (replace(packed, values=packed.values.to(torch.int8)), "int8 values have a scale"),
        (replace(packed, scale=torch.ones(5)), "int8 values have a scale"),
        (replace(packed, mask=beyond, values=grown), "bits beyond the 5 x 37 weight"),
    ]:
        with pytest.raises(ValueError, match=f"q_proj: .*{words}"):
            damaged.check("q_proj")
