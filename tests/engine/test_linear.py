"""A packed linear stands where a dense one stood: same outputs, no training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemend.engine import choice
from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.packed import pack_weight


def pair(
    shape: tuple[int, int] = (9, 37), dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[nn.Linear, PackedLinear]:
    """A dense linear with 70 % of zeros, and its packed form."""
    torch.manual_seed(seed)
    linear = nn.Linear(shape[1], shape[0], dtype=dtype).requires_grad_(False)
    linear.weight *= torch.rand(shape) < 0.3
    linear.weight[2] = 0
    values = str(dtype).removeprefix("torch.")
    return linear, PackedLinear(pack_weight(linear.weight, keep=None, values=values), linear.bias)


def close(output: Tensor, expected: Tensor) -> bool:
    assert output.dtype == expected.dtype
    assert output.shape == expected.shape
    # float32: sums in another order; bfloat16: each rounds once, to within half the last bit
    bound = 1e-6 if output.dtype == torch.float32 else 2**-7
    return bool((output - expected).norm() <= bound * expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 35), (0,), (3, 0)])
def test_it_gives_what_the_dense_linear_gives(dtype: torch.dtype, lead: tuple[int, ...]) -> None:
    dense, packed = pair(dtype=dtype)
    x = torch.randn(*lead, 37).to(dtype)
    assert close(packed(x), dense(x))


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    dense, packed = pair()
    for x in (
        torch.randn(37, 3).T,
        torch.randn(4, 74)[:, ::2],
        torch.randn(2, 37, 3).transpose(1, 2),
        torch.randn(1, 37).expand(3, 37),
        torch.randn(3, 50)[:, 5:42],
    ):
        assert close(packed(x), dense(x))


def test_inputs_of_either_dtype_are_multiplied_by_stored_values() -> None:
    dense, packed = pair(dtype=torch.bfloat16)
    x = torch.randn(3, 37)
    assert close(packed(x), dense.float()(x))
    dense, packed = pair()
    x = x.bfloat16()
    assert close(packed(x), dense(x.float()).bfloat16())


def test_what_needs_a_gradient_is_refused() -> None:
    _, packed = pair()
    x = torch.randn(3, 37, requires_grad=True)
    with pytest.raises(RuntimeError, match="no backward pass"):
        packed(x)
    with torch.no_grad():
        assert not packed(x).requires_grad
    assert list(packed.parameters()) == []


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(3, 36), None),  # as many tiles: its tokens would be read shifted
        (torch.randn(3, 70), "does not fit"),
        (torch.randn(3, 37).half(), "model.bfloat16"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(x: Tensor, words: str | None) -> None:
    _, packed = pair()
    with pytest.raises(ValueError, match=words or "36 columns"):
        packed(x)


def test_its_values_keep_their_dtype_when_a_model_is_converted() -> None:
    dense, packed = pair()
    packed.bfloat16()
    assert packed.values.dtype == packed.bias.dtype == torch.float32
    assert packed.mask.dtype == torch.int32
    x = torch.randn(3, 37)
    assert close(packed(x), dense(x))


def test_a_state_dict_brings_its_own_offsets() -> None:
    dense, packed = pair(seed=1)
    _, other = pair(seed=2)
    state = packed.state_dict()
    assert sorted(state) == ["bias", "mask", "values"]
    other.load_state_dict(state)  # another number of values
    x = torch.randn(3, 37)
    assert close(other(x), dense(x))
    state["values"] = state["values"][1:]
    with pytest.raises(RuntimeError, match="the file is damaged"):
        other.load_state_dict(state)
    assert close(other(x), dense(x))


def test_a_copy_is_a_packed_linear_of_its_own() -> None:
    dense, packed = pair()
    twin = copy.deepcopy(packed)
    packed.values.zero_()
    x = torch.randn(3, 37)
    assert close(twin(x), dense(x))
    assert "values=float32, density=0." in repr(twin)
    assert torch.equal(twin.weight, dense.weight + 0.0)


def test_a_trace_knows_its_output_without_values() -> None:
    _, packed = pair()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = packed(mode.from_tensor(torch.randn(2, 5, 37)))
    assert output.shape == (2, 5, 9)


@pytest.mark.slow
def test_the_operator_is_what_torch_asks_of_one() -> None:
    _, packed = pair()
    arguments = (packed.mask, packed.values, packed.offsets, packed.scale, packed.bias, 9)
    torch.library.opcheck(
        torch.ops.sparsemend.packed_linear.default,
        (torch.randn(2, 37), *arguments),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and still there
def test_who_watches_operators_sees_it() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    dense, packed = pair()
    x = torch.randn(2, 37)
    assert close(packed(x), dense(x))
    with Watch():
        assert close(packed(x), dense(x))
    assert "sparsemend.packed_linear.default" in seen
    traced = torch.jit.trace(packed, x, check_trace=False)
    other = torch.randn(2, 37)
    assert close(traced(other), dense(other))


def test_a_buffer_that_another_takes_the_place_of_is_checked() -> None:
    dense, packed = pair()
    x = torch.randn(2, 37)
    packed(x)
    packed.values = packed.values * 2
    assert close(packed(x) - dense.bias, 2 * (dense(x) - dense.bias))
    packed.values = packed.values[:-1]
    with pytest.raises(ValueError, match="fewer values"):
        packed(x)


def test_a_compiled_model_has_it_in_one_graph() -> None:
    dense, packed = pair()
    compiled = torch.compile(nn.Sequential(packed, nn.ReLU()), backend="eager", fullgraph=True)
    x = torch.randn(3, 37)
    with torch.inference_mode():
        assert close(compiled(x), dense(x).relu())


def test_torch_gives_the_same_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.KEY, "torch")
    for dtype in (torch.float32, torch.bfloat16):
        dense, packed = pair(dtype=dtype)
        x = torch.randn(3, 37).to(dtype)
        assert close(packed(x), dense(x))
        _, other = pair(dtype=dtype, seed=5)
        packed.load_state_dict(other.state_dict())
        assert close(packed(x), nn.functional.linear(x, other.weight, other.bias.to(dtype)))
