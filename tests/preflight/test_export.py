"""A packed export that could write nothing, or nothing right, is refused before a run."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.preflight.export import check_export

PACKED = ("export=true", "export_form=packed")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("export_form=packed",), "add export=true"),
        (("export_values=int8",), "export_values=int8 is for packed weights; add export_form"),
        ((*PACKED, "model.dtype=float16"), "this one is float16; add export_dtype=bfloat16"),
        (
            (*PACKED, "model.dtype=float32", "export_values=bfloat16"),
            "would round the weights of a float32 model; add export_dtype=bfloat16",
        ),
        ((*PACKED, "pruner=none", "sparsity=0"), "pruner=none leaves no zero"),
        ((*PACKED, "method=lora"), "method=lora leaves its adapter beside the weights"),
    ],
)
def test_what_contradicts_is_refused_with_a_remedy(lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_export(compose("run", list(lines)))


@pytest.mark.parametrize(
    "lines",
    [
        (),
        PACKED,
        (*PACKED, "export_values=int8"),
        (*PACKED, "model.dtype=float16", "export_dtype=bfloat16"),
        (*PACKED, "model.dtype=float32", "export_dtype=bfloat16", "export_values=bfloat16"),
        (*PACKED, "method=dsnot", "export_values=float32"),
    ],
)
def test_what_agrees_passes(lines: tuple[str, ...]) -> None:
    check_export(compose("run", list(lines)))
