"""A model folder that would not be loaded whole is refused by its config and headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from support.checkpoints import changed, fused_attention, packed, pickled, prefixed, without
from support.families import random_model

from sparsemend.checkpoint.model import find_model
from sparsemend.preflight.checkpoint import check_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama").save_pretrained(folder)
    return folder


def check(folder: Path, *, trust_remote_code: bool = False) -> None:
    section = OmegaConf.create({"path": str(folder), "trust_remote_code": trust_remote_code})
    check_checkpoint(section, find_model(section))


def test_a_sound_folder_passes(llama: Path) -> None:
    check(llama)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("_orig_mod.", r"torch\.compile around it: .*_orig_mod\. in their names"),
        ("model._orig_mod.", r"torch\.compile around it"),
        ("module.", "DataParallel or DeepSpeed around it"),
        ("base_model.model.", r"PEFT around it: .*base_model\.model\. in"),
        ("student.", r"a module around it: .*student\. in their names"),
    ],
)
def test_names_that_a_wrapper_wrote_are_refused(
    llama: Path, tmp_path: Path, prefix: str, wrapper: str
) -> None:
    folder = changed(tmp_path, llama, tensors=prefixed(prefix))
    with pytest.raises(ValueError, match=rf"{wrapper}.*; save the inner model"):
        check(folder)


def test_adapters_that_are_not_merged_are_refused(llama: Path, tmp_path: Path) -> None:
    factor = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)}
    folder = changed(tmp_path, llama, tensors=lambda tensors: tensors | factor)
    with pytest.raises(ValueError, match=r"LoRA factors that are not merged.*merge_and_unload"):
        check(folder)


def test_a_config_with_more_blocks_than_the_file_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, llama, config={"num_hidden_layers": 4})
    message = r"holds 3 blocks .*num_hidden_layers=4: .*\(number 3\) would be random"
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_a_config_with_fewer_blocks_than_the_file_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, llama, config={"num_hidden_layers": 2})
    with pytest.raises(ValueError, match=r"num_hidden_layers=2: the last 1 would be left out"):
        check(folder)


def test_blocks_that_predict_later_tokens_may_come_on_top(llama: Path, tmp_path: Path) -> None:
    check(changed(tmp_path, llama, config={"num_hidden_layers": 2, "num_nextn_predict_layers": 1}))


def test_blocks_that_run_several_times_are_fewer_than_stated(llama: Path, tmp_path: Path) -> None:
    check(changed(tmp_path, llama, config={"num_hidden_layers": 6}))


def test_a_missing_head_is_refused_unless_it_is_the_embedding(llama: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, llama, tensors=without("lm_head"))
    with pytest.raises(ValueError, match=r"tie_word_embeddings=false: embedding or head is miss"):
        check(folder)
    check(
        changed(tmp_path, llama, tensors=without("lm_head"), config={"tie_word_embeddings": True})
    )


def test_fused_attention_has_no_place_in_a_class_that_splits_it(
    llama: Path, tmp_path: Path
) -> None:
    folder = changed(tmp_path, llama, tensors=fused_attention)
    message = r"does not fit LlamaForCausalLM.*without a place for it, .*qkv_proj\.weight.*3 in all"
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_split_attention_has_no_place_in_a_class_that_fuses_it(llama: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, llama, config={"model_type": "phi3", "architectures": ["Phi3"]})
    with pytest.raises(ValueError, match=r"does not fit Phi3ForCausalLM.*gate_proj\.weight"):
        check(folder)


def test_biases_that_the_config_does_not_name_are_refused_and_so_are_those_missing(
    llama: Path, tmp_path: Path
) -> None:
    folder = changed(tmp_path, llama, config={"attention_bias": True})
    with pytest.raises(ValueError, match=r"lacks.*self_attn\.k_proj\.bias.*12 in all"):
        check(folder)
    bias = {"model.layers.1.self_attn.o_proj.bias": torch.zeros(32)}
    more = changed(tmp_path / "more", llama, tensors=lambda tensors: tensors | bias)
    with pytest.raises(ValueError, match=r"without a place.*1\.self_attn\.o_proj\.bias.*1 in all"):
        check(more)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"intermediate_size": 64}, r"mlp\.\w+\.weight is .*48.* in the file and .*64.*9 tensors"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight is \(16, 32\) .* and \(32, 32\) .*6 tensors"),
        ({"head_dim": 16}, r"\(12 tensors differ in size\)"),
        ({"vocab_size": 128}, r"weight is \(96, 32\) in the file and \(128, 32\).*2 tensors"),
    ],
)
def test_sizes_that_the_config_contradicts_are_refused(
    llama: Path, tmp_path: Path, config: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(changed(tmp_path, llama, config=config))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_a_quantised_model_is_refused_by_its_config(
    llama: Path, tmp_path: Path, settings: dict[str, object], method: str
) -> None:
    folder = changed(tmp_path, llama, config={"quantization_config": settings})
    with pytest.raises(ValueError, match=f"quantised with {method} .*from before quantisation"):
        check(folder)


def test_a_quantised_language_part_is_refused(llama: Path, tmp_path: Path) -> None:
    inner = {"quantization_config": {"quant_method": "awq"}}
    folder = changed(tmp_path, llama, config={"text_config": inner})
    with pytest.raises(ValueError, match="quantised with awq"):
        check(folder)


def test_packed_tensors_are_refused_by_their_names(llama: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, llama, tensors=packed)
    with pytest.raises(ValueError, match=r"quantised with GPTQ or AWQ .*up_proj\.qweight shows"):
        check(folder)


def test_packed_tensors_are_refused_by_their_dtype(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    bytes_ = {name: torch.zeros(768, 1, dtype=torch.uint8)}
    folder = changed(tmp_path, llama, tensors=lambda tensors: tensors | bytes_)
    with pytest.raises(ValueError, match=r"quantised with .*up_proj\.weight is U8"):
        check(folder)


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_formats_that_are_turned_back_while_they_load_pass(
    llama: Path, tmp_path: Path, method: str
) -> None:
    check(changed(tmp_path, llama, config={"quantization_config": {"quant_method": method}}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(
    llama: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = changed(tmp_path, llama, tensors=lambda ts: {n: t.to(dtype) for n, t in ts.items()})
    with pytest.raises(ValueError, match="which is none of F64, F32, F16, BF16"):
        check(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "", r"tokenizer\.json is no JSON object"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json is not a JSON object"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("config.json", '{"model_type": 3}', r"model_type=3, which is no name"),
    ],
)
def test_broken_files_beside_the_weights_are_refused_by_name(
    llama: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = changed(tmp_path, llama)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_a_gguf_file_alone_is_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(ValueError, match=r"quantised with GGUF \(model-q4\.gguf"):
        check(tmp_path)


def test_pickled_weights_are_read_only_from_a_trusted_source(llama: Path, tmp_path: Path) -> None:
    folder = pickled(tmp_path, llama)
    with pytest.raises(ValueError, match=r"pickled weights.*set model\.trust_remote_code=true"):
        check(folder)
    check(folder, trust_remote_code=True)


def test_code_of_a_checkpoint_runs_only_when_it_is_trusted(llama: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "own_config.Own", "AutoModelForCausalLM": "own_model.OwnForCausalLM"}
    folder = changed(tmp_path, llama, config={"model_type": "own", "auto_map": code})
    with pytest.raises(ValueError, match=r"own_model\.OwnForCausalLM.*model\.trust_remote_code="):
        check(folder)
    check(folder, trust_remote_code=True)


def test_code_that_transformers_has_itself_is_not_needed(llama: Path, tmp_path: Path) -> None:
    code = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    check(changed(tmp_path, llama, config={"auto_map": code}))


def test_an_encoder_decoder_is_called_so(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"\(T5ForConditionalGeneration\) is an encoder-decoder"):
        check(tmp_path)


def test_a_model_without_language_is_called_so(tmp_path: Path) -> None:
    transformers.ViTConfig(architectures=["ViTModel"]).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"\(ViTModel\) is no causal language model"):
        check(tmp_path)


def test_a_tokenizer_that_needs_sentencepiece_says_so(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tmp_path, llama)
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr("sparsemend.checkpoint.tokenizer.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sparsemend\[sentencepiece\]'"):
        check(folder)
    (folder / "tokenizer.json").write_text(json.dumps({}))
    check(folder)


def test_a_tokenizer_of_tiktoken_needs_no_sentencepiece(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tmp_path, llama)
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    monkeypatch.setattr("sparsemend.checkpoint.tokenizer.find_spec", lambda name: None)
    check(folder)
