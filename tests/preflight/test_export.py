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
        ((*PACKED, "pruner=none", "sparsity=0"), "pruner=none with sparsity=0 leaves no zero"),
        ((*PACKED, "sparsity=0"), "pruner=wanda with sparsity=0 leaves no zero"),
        ((*PACKED, "method=lora"), "method=lora leaves its adapter beside the weights"),
        (("export_private=true",), "add export_push=OWNER/NAME"),
        (("export_push=me/it",), "uploads what is exported; add export=true"),
        (("export=true", "export_push=it"), "export_push=it is not OWNER/NAME"),
        (("export=true", "export_push=me/it"), "HF_HUB_OFFLINE is set; unset it"),
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


def test_a_push_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    push = compose("run", ["export=true", "export_push=me/it", "export_private=true"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="set HF_TOKEN, or log in: hf auth login"):
        check_export(push)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    check_export(push)
