"""A checkpoint is loaded whole, or refused in one line that says why."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import changed, fused_attention, pickled, prefixed, without
from support.families import random_model
from transformers import PreTrainedModel

from sparsemend.pretrained.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama").save_pretrained(folder)
    return folder


def load(
    folder: Path, *, attention: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    checkpoint = Checkpoint(path=str(folder), revision=None, trust_remote_code=trust_remote_code)
    return checkpoint.load(dtype=torch.float32, attention=attention)


def test_a_sound_folder_is_loaded_with_its_own_bits(llama: Path) -> None:
    saved, loaded = load_file(llama / "model.safetensors"), load(llama).state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("student."), r"lacks.* lm_head\.weight.*30 in all\); the file holds.*student\."),
        (without("lm_head"), r"the file lacks.*random: lm_head\.weight \(1 in all\)"),
        (without("layers.1."), r"lacks.*model\.layers\.1\.input_layernorm.* and 6 more \(9 in all"),
        (fused_attention, r"lacks.*self_attn\.k_proj.*; the file holds.*self_attn\.qkv_proj"),
        (lambda t: t | {"extra.weight": torch.ones(1)}, r"without a place for it: extra\.weight"),
    ],
)
def test_a_file_without_the_tensors_of_the_class_is_refused(
    llama: Path, tmp_path: Path, change: object, message: str
) -> None:
    folder = changed(tmp_path, llama, tensors=change)
    with pytest.raises(ValueError, match=f"does not fit LlamaForCausalLM.*{message}"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 4}, r"the file lacks.*model\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"without a place for it: model\.layers\.2\."),
        ({"attention_bias": True}, r"the file lacks.*k_proj\.bias.*12 in all"),
        (
            {"intermediate_size": 64},
            r"down_proj\.weight is \(32, 48\) in the file and \(32, 64\) in Llama.*\(9 of its",
        ),
        ({"hidden_size": "x"}, "expected int, got str"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"hidden_act": "nope"}, "'nope' is missing.* or unknown"),
        ({"model_type": "nope"}, "model type `nope`"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
    ],
)
def test_a_config_that_is_not_the_files_is_refused(
    llama: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    folder = changed(tmp_path, llama, config=config)
    with pytest.raises(ValueError, match=message) as refused:
        load(folder)
    assert str(refused.value).startswith(f"model {folder} ")
    assert "\n" not in str(refused.value)


def test_buffers_that_are_computed_now_may_be_in_the_file(llama: Path, tmp_path: Path) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load(changed(tmp_path, llama, tensors=lambda tensors: tensors | frequencies))


def test_blocks_that_predict_later_tokens_are_left_out_by_name(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    model = load(changed(tmp_path, llama, config=config))
    assert len(model.model.layers) == 2
    assert "does not use 9 tensors" in caplog.text
    assert "model.layers.2.input_layernorm.weight" in caplog.text


def test_without_a_wish_the_model_chooses_its_attention(llama: Path, tmp_path: Path) -> None:
    assert load(llama).config._attn_implementation == "sdpa"
    assert load(llama, attention="eager").config._attn_implementation == "eager"
    random_model("gpt_neox").save_pretrained(tmp_path)
    assert load(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["nonsense", "flash_attention_2"])
def test_an_attention_that_cannot_be_computed_is_refused_with_those_that_can(
    llama: Path, attention: str
) -> None:
    message = rf"model\.attention={attention} does not work.*; give sdpa or eager.*or null"
    with pytest.raises(ValueError, match=message):
        load(llama, attention=attention)


def test_a_pickle_is_read_for_its_tensors_alone(llama: Path, tmp_path: Path) -> None:
    class Ran:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = pickled(tmp_path / "model", llama)
    with pytest.raises(ValueError, match=r"pickled weights.*model\.trust_remote_code=true"):
        load(folder)
    assert torch.equal(
        load(folder, trust_remote_code=True).lm_head.weight, load(llama).lm_head.weight
    )
    pickled(folder, llama, {"lm_head.weight": Ran()})
    with pytest.raises(ValueError, match="its pickle holds more than tensors"):
        load(folder, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [{"num_return_sequences": 3}, {"temperature": 0.3, "do_sample": False}, {"top_k": "x"}],
)
def test_generation_settings_that_contradict_each_other_do_not_end_an_export(
    llama: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = changed(tmp_path / "model", llama)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    load(folder).save_pretrained(tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").is_file()


def tokenizer_folder(folder: Path, base: Path, **files: dict[str, object]) -> Checkpoint:
    """The model with JSON files of a tokenizer beside it."""
    changed(folder, base)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Checkpoint(path=str(folder), revision=None, trust_remote_code=False)


def test_a_folder_without_a_tokenizer_has_none(llama: Path, tmp_path: Path) -> None:
    assert tokenizer_folder(tmp_path, llama).tokenizer() is None


def test_a_tokenizer_without_a_vocabulary_is_refused(llama: Path, tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer"}
    with pytest.raises(ValueError, match=r"has no vocabulary.*; give a folder with its tokenizer"):
        tokenizer_folder(tmp_path, llama, tokenizer_config=config).tokenizer()


def test_a_broken_tokenizer_is_refused_in_one_line(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model .* cannot give its tokenizer: 'added_tokens'"):
        tokenizer_folder(tmp_path, llama, tokenizer={}).tokenizer()


def test_a_tokenizer_that_is_foreign_code_names_the_key(llama: Path, tmp_path: Path) -> None:
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    with pytest.raises(ValueError, match=r"Python code of its own \(Own\).*model\.trust_rem"):
        tokenizer_folder(tmp_path, llama, tokenizer_config=config).tokenizer()
