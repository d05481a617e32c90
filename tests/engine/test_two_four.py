"""2:4 weights for sparse tensor cores: what torch takes, and one line for what it does not."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsemend.engine import two_four
from sparsemend.engine.two_four import compress_two_four, is_two_four


def test_two_of_every_four_inputs_may_stay() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, -1], [0, 3, 3, 0, 0, 0, 0, 0]])
    assert is_two_four(weight)
    weight[1, 0] = 1
    assert not is_two_four(weight)


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "message"),
    [
        ((64, 128), torch.float32, (9, 0), "need float16 or bfloat16, not torch.float32"),
        ((64, 128), torch.float16, (7, 5), "compute capability 8.0 or later"),
        ((64, 130), torch.float16, (9, 0), "prune with pattern=2:4"),
        ((60, 128), torch.bfloat16, (9, 0), "no 2:4 product with a 60 x 128 weight: [^\n]*shape"),
    ],
)
@pytest.mark.parametrize("cusparselt", [False, True])
def test_what_a_card_cannot_take_is_refused_in_one_line(
    shape: tuple[int, int],
    dtype: torch.dtype,
    capability: tuple[int, int],
    message: str,
    cusparselt: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A card is pretended by a tensor without values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    monkeypatch.setattr(two_four, "is_two_four", lambda weight: True)
    with FakeTensorMode():
        weight = torch.empty(shape, dtype=dtype, device="cuda")
        with pytest.raises(ValueError, match=message):
            compress_two_four(weight)


def test_a_card_is_needed() -> None:
    with pytest.raises(ValueError, match="CUDA devices only"):
        compress_two_four(torch.zeros(64, 128).half())
