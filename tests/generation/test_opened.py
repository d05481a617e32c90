"""A model that is opened on another device generates there what it generates on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import random_model
from support.layouts import prune_two_of_four_
from support.pretended_device import pretended_device

from sparsemend.generation import opened
from sparsemend.generation.folder import find_place
from sparsemend.generation.generate import TimedText, generate
from sparsemend.generation.opened import check_card, open_place
from sparsemend.generation.settings import Sampling
from sparsemend.model import train_tokenizer
from sparsemend.run.export import export, to_dense_

SAMPLING = {"max_new_tokens": 8, "temperature": None, "top_p": None, "top_k": None, "seed": 0}


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended device is no card, so torch multiplies by a dense copy."""
    monkeypatch.setenv("SPARSEMEND_ENGINE", "torch")


@pytest.mark.parametrize("values", ["float32", "int8", None])
def test_text_of_another_device_is_that_of_a_cpu(
    values: str | None, tmp_path: Path, without_triton: None
) -> None:
    model = random_model("llama", vocab_size=300)
    prune_two_of_four_(model)
    if values is None:
        to_dense_(model)
    tokenizer = train_tokenizer(["the import statement binds a name"] * 20, 300)
    export(model, tokenizer, tmp_path / "m", masks=tmp_path / "no", card=None, values=values)

    def text(device: str) -> tuple[str, str]:
        there = open_place(
            find_place(str(tmp_path / "m")),
            dtype=None,
            device=torch.device(device),
            trust_remote_code=False,
        )
        assert {tensor.device.type for tensor in there.model.state_dict().values()} == {device}
        parts: list[str] = []
        prompt = there.tokens("the import", chat=False, system=None)
        assert prompt.device.type == device
        sampling = Sampling(**SAMPLING, greedy=True)
        generate(there, prompt, sampling, TimedText(there.tokenizer, parts.append))
        return "".join(parts), there.form

    here, form = text("cpu")
    assert here
    assert form.endswith(" thread") or form.endswith(" threads")
    with pretended_device():
        there, form = text("far")
    assert there == here
    assert form.endswith(", far:0")


def test_a_card_that_torch_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_card(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--device cuda, and torch .*: it sees no card; take"):
        check_card(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_card(torch.device("cuda:0"))
    with pytest.raises(ValueError, match=r"--device cuda:1, and torch .*: it sees 1 card;"):
        check_card(torch.device("cuda:1"))


def test_the_form_of_a_card_is_tritons_where_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    for works, form in ((True, "triton"), (False, None)):
        monkeypatch.setattr(opened, "multiplied_by_triton", lambda device, works=works: works)
        assert opened.kernel_form(torch.device("cuda")) == form
