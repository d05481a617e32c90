"""The script that tries an exported folder in other engines, beside a converter of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.run import try_engines

CONVERTER = """
import sys
import gguf
from safetensors.numpy import load_file

folder, _, file, _, kind = sys.argv[1:]
assert kind == "f32"
writer = gguf.GGUFWriter(file, "llama")
for name, weight in load_file(f"{folder}/model.safetensors").items():
    LOSS
    writer.add_tensor(name.replace("model.layers.", "blk."), weight)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weight = torch.arange(12.0).view(3, 4) % 3  # four zeros
    tensors = {"model.layers.0.up_proj.weight": weight, "model.embed.weight": torch.zeros(2, 2)}
    save_file(
        {**tensors, "model.layers.0.norm.weight": torch.zeros(4)}, tmp_path / "model.safetensors"
    )
    return tmp_path


def test_an_engine_that_is_not_there_is_not_tried(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(try_engines, "find_spec", lambda name: None)
    assert try_engines.main([str(folder)]) == 0
    vllm, converter = capsys.readouterr().out.splitlines()
    assert vllm == "vllm: not tried, vllm is not installed"
    assert converter.startswith("llama.cpp converter: not tried, no --converter")


@pytest.mark.parametrize(
    ("loss", "status", "line"),
    [
        ("pass", 0, "passed, 4 zeros of the blocks' matrices, 4 in the folder"),
        ("weight = weight + (weight == 0)", 1, "FAILED, 0 zeros of the blocks' matrices, 4 in"),
        pytest.param(
            *("raise SystemExit('no such model')", 1, "FAILED, no such model"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_converter_must_keep_every_zero(
    folder: Path, loss: str, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = folder / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER.replace("LOSS", loss))
    assert try_engines.main([str(folder), "--converter", str(script)]) == status
    assert f"llama.cpp converter: {line}" in capsys.readouterr().out


def test_greedy_tokens_follow_each_other() -> None:
    def model(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.nn.functional.one_hot((input_ids + 1) % 7, 7))

    tokens = try_engines.greedy(model, torch.tensor([[4]]))
    assert tokens == [(5 + n) % 7 for n in range(try_engines.TOKENS)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing.safetensors", "has no weights"),
        ("packed-00001-of-00001.safetensors", "holds packed weights"),
    ],
)
def test_a_folder_without_dense_weights_is_refused(
    name: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(SystemExit):
        try_engines.main([str(folder)])
    assert line in capsys.readouterr().err
