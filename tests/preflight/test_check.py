"""Refusals that need no model: value, bound and remedy, before anything heavy is imported."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.configs import compose

from sparsemend.preflight import check as preflight

VOCABULARY, SEQLEN = 64, 16
ATP = "sparsity_schedule=atp"
DIFFERENCE = "sparsity_schedule.common_difference"


def llama(folder: Path, *, blocks: int = 2, intermediate: int = 24, **save: str) -> Path:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder, **save)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one zero, the last weight of its last linear."""
    folder = llama(tmp_path_factory.mktemp("pruned"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][-1, -1] = -0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check(model: Path | str, *overrides: str) -> None:
    lines = ["model=local", f"model.path={model}", "model.context_length=16", *overrides]
    if Path(model).is_dir():
        (Path(model) / "tokenizer.json").write_text("{}")  # of which the first sign is read
    preflight.check(compose("run", overrides=lines))


def tokens(path: Path, *, rows: int = 4, length: int = SEQLEN, first: int = 0) -> torch.Tensor:
    ids = (first + torch.arange(rows * length).reshape(rows, length)) % VOCABULARY
    save_file({"input_ids": ids}, path)
    return ids


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for first, name in enumerate(("calibration", "train", "test")):
        tokens(tmp_path / f"{name}.safetensors", first=first)
    return tmp_path


def check_data(model: Path, data: Path, *overrides: str) -> None:
    files = [f"data.{k}={data / k}.safetensors" for k in ("calibration", "train", "test")]
    check(model, "data=tokens", *files, "data.calibration_samples=4", *overrides)


def test_a_sound_configuration_passes(model: Path) -> None:
    check(model)


def test_a_sound_configuration_on_tokens_files_passes(model: Path, data: Path) -> None:
    check_data(model, data)


def test_the_untrained_model_passes() -> None:
    preflight.check(compose("run", overrides=["experiment=pretrain_tiny"]))


def test_an_unknown_form_of_the_kernels_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "avx")
    with pytest.raises(ValueError, match="SPARSEMEND_ENGINE=avx is not one of: portable, avx2"):
        check(model)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("logger=[]", r"logger has no member"),
        ("~method", r"method has no member"),
    ],
)
def test_a_group_without_a_member_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preflight.check(compose("run", overrides=[line]))


def test_a_run_may_measure_nothing() -> None:
    """The dense model may be too large to be measured where it can be pruned."""
    preflight.check(compose("run", overrides=["evaluation=[]"]))


@pytest.mark.parametrize("sparsity", ["1.2", "1.0", "-0.1", "nan", "much"])
def test_a_sparsity_outside_its_range_is_refused(model: Path, sparsity: str) -> None:
    with pytest.raises(ValueError, match=r"sparsity=.* is not (a number )?in \[0, 1\)"):
        check(model, f"sparsity={sparsity}")


@pytest.mark.parametrize("pattern", ["5:4", "4:4", "0:4", "banana", "mixed:1"])
def test_an_impossible_pattern_is_refused(model: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of:? unstructured, N:M"):
        check(model, f"pattern={pattern}", "sparsity=0.5")


def test_a_pattern_that_yaml_read_in_base_60_is_refused_with_the_quotes(model: Path) -> None:
    with pytest.raises(ValueError, match="pattern: '2:4'"):
        check(model, "pattern=124")


def test_a_sparsity_that_contradicts_the_pattern_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"contradicts pattern 2:4.*set sparsity=0\.5"):
        check(model, "pattern=2:4", "sparsity=0.6")


def test_a_mixed_pattern_takes_any_mean(model: Path) -> None:
    check(model, "pattern=mixed:8", "sparsity=0.6", ATP, f"{DIFFERENCE}=0.05")


def test_a_mixed_pattern_that_would_keep_less_than_one_input_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"sparsity 0\.9 .* exceeds 1 - 1/8 = 0\.875"):
        check(model, "pattern=mixed:8", "sparsity=0.9")


def test_a_common_difference_that_empties_the_groups_of_a_block_is_refused(model: Path) -> None:
    lines = ("pattern=mixed:8", "sparsity=0.8", ATP)
    with pytest.raises(ValueError, match=r"exceeds 2\*min\(s, 0\.875-s\)/\(L-1\) .*choose a value"):
        check(model, *lines, f"{DIFFERENCE}=0.2")
    check(model, "sparsity=0.8", ATP, f"{DIFFERENCE}=0.2")


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning"])
def test_a_reference_budget_of_a_mixed_pattern_needs_a_whole_n(model: Path, name: str) -> None:
    lines = ("pattern=mixed:8", f"sparsity_schedule={name}", "sparsity_schedule.budget=reference")
    with pytest.raises(ValueError, match=r"not 0\.6 \* 8 = 4\.8; set sparsity=0\.625, or spars"):
        check(model, *lines, "sparsity=0.6")
    check(model, *lines, "sparsity=0.625")


def test_a_fixed_pattern_with_a_progression_is_refused_naming_the_mixed_one(model: Path) -> None:
    with pytest.raises(ValueError, match="use pattern=mixed:4"):
        check(model, "pattern=2:4", "sparsity=0.5", ATP, f"{DIFFERENCE}=0.05")


def test_rmi_is_refused_with_a_fixed_pattern(model: Path) -> None:
    with pytest.raises(ValueError, match="rmi varies; use pattern=mixed:4"):
        check(model, "pattern=2:4", "sparsity=0.5", "sparsity_schedule=rmi")


def test_comparing_more_sequences_than_there_are_is_refused(model: Path) -> None:
    rmi = ("sparsity_schedule=rmi", "data.calibration_samples=8")
    words = r"similarity_samples=64 exceeds data\.calibration_samples=8; set "
    with pytest.raises(ValueError, match=words):
        check(model, *rmi)
    check(model, *rmi, "sparsity_schedule.similarity_samples=8")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("pattern=2:4", "sparsity=0.5"), r"or method\.fixed_pattern=true for it in every round"),
        (("pattern=mixed:8",), "use pattern=unstructured$"),
        (("method.fixed_pattern=true",), "needs an N:M pattern"),
        (("method.mean_rank=0.5",), r"mean rank 0\.5 of round 1 is below method\.min_rank=1"),
        (("method.rank_growth=5",), r"mean rank 21 of round 4 is above method\.max_rank=16"),
        (("method.max_rank=17",), r"method\.max_rank=17 exceeds min\(inputs, outputs\) = 16"),
        (("method.max_steps=4",), r"max_steps=4 is less than a step for each of method\.rounds=5"),
        (("method.round_steps=[1,2]",), "are not 5 positive counts"),
        (
            ("method.targets=[0.2,0.5,0.4,0.5,0.6]",),
            r"0\.4 of round 3 is below the 0\.5 that the round before has reached",
        ),
        (("method.data_slices=[[0,4]]",), r"is not one \[first, end\)"),
        (("data.calibration_samples=8",), r"method\.similarity_samples=64 exceeds"),
        (("method.rounds=0",), r"method\.rounds=0 is not an integer of at least 1"),
    ],
)
def test_rounds_that_cannot_work_are_refused(
    model: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check(model, "method=losa", *overrides)


def test_a_schedule_beside_rounds_is_said_to_shape_at_most_the_one_shot_model(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(model, "method=losa")
    assert not caplog.messages
    check(model, "method=losa", "sparsity_schedule=owl")
    assert "sparsity_schedule has no effect: this method sets the rate" in caplog.text
    check(model, "method=losa", "sparsity_schedule=owl", "method.prior_prune=true")
    assert "sparsity_schedule shapes only the one-shot model" in caplog.text


def test_rounds_that_can_work_pass(model: Path) -> None:
    check(model, "method=losa")
    check(model, "method=losa", "pattern=2:4", "sparsity=0.5", "method.fixed_pattern=true")


def test_a_width_that_is_no_multiple_of_the_group_is_refused(tmp_path: Path) -> None:
    odd = llama(tmp_path, intermediate=22)
    with pytest.raises(
        ValueError,
        match=r"down_proj has 22 inputs, not a multiple of 4.*dense with prunable\.exclude",
    ):
        check(odd, "pattern=2:4", "sparsity=0.5")
    check(odd, "pattern=2:4", "sparsity=0.5", "prunable.exclude=[down_proj]")


def test_a_width_that_is_no_multiple_is_a_warning_with_the_reference_tail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = llama(tmp_path, intermediate=22)
    with caplog.at_level(logging.WARNING):
        check(odd, "pattern=2:4", "sparsity=0.5", "pattern_tail=reference")
    assert "down_proj has 22 inputs, not a multiple of 4" in caplog.text


def test_a_width_is_checked_in_every_shard(tmp_path: Path) -> None:
    odd = llama(tmp_path, intermediate=22, max_shard_size="4KB")
    assert len(list(odd.glob("*.safetensors"))) > 1
    with pytest.raises(ValueError, match="down_proj has 22 inputs"):
        check(odd, "pattern=2:4", "sparsity=0.5")


def stated_blocks(folder: Path, blocks: int, *, nested: bool = False) -> Path:
    values = {"num_hidden_layers": blocks}
    text = json.dumps({"text_config": values} if nested else values)
    (folder / "config.json").write_text(text)
    (folder / "pytorch_model.bin").touch()
    return folder


def check_difference(folder: Path, difference: str) -> None:
    trusted = "model.trust_remote_code=true"  # its weights are pickled
    check(folder, trusted, "sparsity=0.7", ATP, f"{DIFFERENCE}={difference}")


@pytest.mark.parametrize("difference", ["0.02", "-0.02"])
def test_a_common_difference_beyond_the_bound_is_refused(tmp_path: Path, difference: str) -> None:
    message = (
        rf"common_difference {difference} exceeds 2\*min\(s, 1-s\)/\(L-1\) = 0\.01935 "
        r"for L=32, s=0\.7"
    )
    with pytest.raises(ValueError, match=message):
        check_difference(stated_blocks(tmp_path, 32), difference)


def test_a_common_difference_on_the_bound_is_legal(tmp_path: Path) -> None:
    for difference in ("0.04", "-0.04"):
        check_difference(stated_blocks(tmp_path, 16), difference)


def test_the_blocks_are_counted_in_a_nested_text_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="L=32"):
        check_difference(stated_blocks(tmp_path, 32, nested=True), "0.02")


def test_text_for_a_model_without_a_tokenizer_is_refused(data: Path) -> None:
    lines = ["model=local", f"model.path={llama(data / 'model')}", "model.context_length=16"]
    message = r"^data \(python_docs\) reads text, and .*model has no tokenizer.*give data=tokens"
    with pytest.raises(ValueError, match=message):
        preflight.check(compose("run", overrides=lines))
    files = [f"data.{k}={data / k}.safetensors" for k in ("calibration", "train", "test")]
    lines += ["data=tokens", *files, "data.calibration_samples=4"]
    preflight.check(compose("run", overrides=lines))
    with pytest.raises(ValueError, match=r"^evaluation=zero_shot reads text, .*leave zero_shot"):
        preflight.check(compose("run", overrides=[*lines, "evaluation=[zero_shot]"]))


def test_a_missing_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model folder .*absent does not exist; give"):
        check(tmp_path / "absent")


def test_a_missing_embedded_model_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check("embedded:absent")


@pytest.mark.parametrize("name", ["org/name", "gpt2"])
def test_a_name_that_is_no_folder_counts_as_a_hub_id(name: str) -> None:
    check(name)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        check(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        check(tmp_path)


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    sharded = llama(tmp_path, max_shard_size="4KB")
    next(sharded.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the .* weight files.*model-00002"):
        check(sharded)


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    weights = llama(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is cut short"):
        check(tmp_path)


def test_a_model_of_transposed_layers_is_taken_by_its_inputs(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    check(tmp_path)
    half = ("pattern=8:64", "sparsity=0.875")
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn has 16 inputs, not a multiple of 64"):
        check(tmp_path, *half)


def test_linears_with_a_bias_are_recognised(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        word_embed_proj_dim=16,
        max_position_embeddings=32,
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    check(tmp_path)


def mixture(folder: Path) -> Path:
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=32,
        num_local_experts=2,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_experts_of_a_mixture_are_named_as_the_files_name_them(tmp_path: Path) -> None:
    check(mixture(tmp_path))
    misfit = r"layers\.0\.block_sparse_moe\.experts\.0\.w2 has 24 inputs, not a multiple of 16"
    with pytest.raises(ValueError, match=misfit):
        check(tmp_path, "pattern=8:16", "sparsity=0.5")
    with pytest.raises(ValueError, match=r"method\.rank=17 exceeds min\(inputs, outputs\) = 16"):
        check(tmp_path, "method=lora", "method.rank=17")


def test_a_model_with_weights_outside_linears_is_refused_by_the_largest(tmp_path: Path) -> None:
    tensors = {
        "layer.0.rel_attn.q": torch.ones(8, 2, 4),
        "layer.0.rel_attn.big": torch.ones(8, 4, 4),
        "layer.0.ff.weight": torch.ones(8, 8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"model_type": "xlnet", "vocab_size": 64, "architectures": ["XLNetLMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"75% of the weights .* first layer\.0\.rel_attn\.big"):
        check(tmp_path)


def test_a_linear_that_its_class_never_calls_is_not_held_to_a_pattern(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=VOCABULARY, time_step_rank=1
    )
    transformers.MambaForCausalLM(config).save_pretrained(
        tmp_path
    )  # x_proj (9, 32), dt_proj (32, 1)
    check(tmp_path, "pattern=2:4", "sparsity=0.5", "method=lora", "method.rank=9")
    with pytest.raises(ValueError, match=r"in_proj has 16 inputs, not a multiple of 32"):
        check(tmp_path, "pattern=16:32", "sparsity=0.5")


def test_a_window_longer_than_the_positions_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.seqlen=33 exceeds .*max_position_embeddings=32"):
        check(model, "data.seqlen=33")


def test_a_prompt_longer_than_the_positions_is_refused(model: Path) -> None:
    lengths = ("evaluation.speed.prompt_tokens=30", "evaluation.speed.new_tokens=3")
    with pytest.raises(ValueError, match=r"exceed the model's max_position_embeddings=32"):
        check(model, "data.seqlen=16", "evaluation=[speed]", *lengths)


def test_a_window_of_one_token_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.seqlen=1 is not an integer of at least 2"):
        check(model, "data.seqlen=1")


def test_no_calibration_sample_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.calibration_samples=0 is not .* at least 1"):
        check(model, "data.calibration_samples=0")


def test_a_missing_tokens_file_is_refused(model: Path, data: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.test=.*absent.* does not exist"):
        check_data(model, data, f"data.test={data}/absent.safetensors")


def test_a_tokens_file_without_input_ids_is_refused(model: Path, data: Path) -> None:
    save_file({"ids": torch.zeros(4, SEQLEN, dtype=torch.long)}, data / "train.safetensors")
    with pytest.raises(ValueError, match=r"data\.train=.* has no tensor `input_ids`; it holds ids"):
        check_data(model, data)


def test_tokens_that_are_no_integers_are_refused(model: Path, data: Path) -> None:
    save_file({"input_ids": torch.zeros(4, SEQLEN)}, data / "train.safetensors")
    with pytest.raises(ValueError, match="dtype F32, which is not an integer type"):
        check_data(model, data)


def test_too_few_calibration_rows_are_refused(model: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4 rows, fewer than the 5 needed; set .*samples=4"):
        check_data(model, data, "data.calibration_samples=5")


def test_rows_shorter_than_a_window_are_refused(model: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"rows of 16 tokens, shorter than data\.seqlen=17"):
        check_data(model, data, "data.seqlen=17")


def test_an_id_beyond_the_vocabulary_is_refused(model: Path, data: Path) -> None:
    ids = load_file(data / "test.safetensors")["input_ids"]
    ids[-1, -1] = VOCABULARY
    save_file({"input_ids": ids}, data / "test.safetensors")
    with pytest.raises(ValueError, match=r"the token id 64, but .* 64 entries \(0 to 63\)"):
        check_data(model, data)


def test_a_negative_id_is_refused(model: Path, data: Path) -> None:
    ids = load_file(data / "test.safetensors")["input_ids"]
    ids[0, 0] = -100
    save_file({"input_ids": ids}, data / "test.safetensors")
    with pytest.raises(ValueError, match="the token id -100"):
        check_data(model, data)


def test_a_missing_text_file_is_refused(model: Path, data: Path) -> None:
    (data / "a.txt").write_text("words")
    files = [f"data.train=[{data}/a.txt,{data}/b.txt]", f"data.test={data}/a.txt"]
    with pytest.raises(FileNotFoundError, match=r"data\.train=.*b\.txt does not exist"):
        check(model, "data=text", *files)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [("train", "give one"), ("test", "give one"), ("calibration", "give one, or null")],
)
def test_an_empty_list_of_text_files_is_refused_by_its_key(
    model: Path, tmp_path: Path, key: str, remedy: str
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    files = {"train": f"{tmp_path}/a.txt", "test": f"{tmp_path}/a.txt", key: "[]"}
    lines = [f"data.{part}={file}" for part, file in files.items()]
    with pytest.raises(ValueError, match=rf"^data\.{key}=\[\] names no file; {remedy}$"):
        check(model, "data=text", *lines)


@pytest.mark.parametrize("member", ["text", "tokens", "instructions"])
@pytest.mark.parametrize("held", ["test", "validation"])
@pytest.mark.parametrize("how", ["same", "linked", "copied"])
def test_a_held_out_file_that_is_learnt_from_is_refused(
    model: Path, data: Path, member: str, held: str, how: str
) -> None:
    end = {"text": "txt", "tokens": "safetensors", "instructions": "jsonl"}[member]
    for name in ("train", "test") if member != "tokens" else ():
        row = json.dumps({**ALPACA, "input": name}) + "\n"
        (data / f"{name}.{end}").write_text(row * 60)
    other = data / f"other.{end}"
    if how == "linked":
        other.symlink_to(data / f"train.{end}")
    elif how == "copied":
        shutil.copy(data / f"train.{end}", other)
    else:
        other = data / f"train.{end}"
    files = {"train": f"{data}/train.{end}", "test": f"{data}/test.{end}"}
    if member == "tokens":
        files["calibration"] = f"{data}/calibration.{end}"
    inside = ["data@data.text=python_docs"] * (member == "instructions")

    def check_files(**changes: str) -> None:
        lines = [f"data.{key}={place}" for key, place in {**files, **changes}.items()]
        few = [] if inside else ["data.calibration_samples=4"]
        check(model, f"data={member}", *inside, *lines, *few)

    check_files()
    with pytest.raises(ValueError, match=rf"^data\.{held}=.* is the same as data\.train=.*; give"):
        check_files(**{held: str(other)})


def test_a_test_file_that_pruning_reads_is_refused(model: Path, data: Path) -> None:
    shutil.copy(data / "test.safetensors", data / "calibration.safetensors")
    with pytest.raises(ValueError, match=r"^data\.test=.* is the same as data\.calibration="):
        check_data(model, data)
    shutil.copy(data / "train.safetensors", data / "calibration.safetensors")
    check_data(model, data)


def test_a_split_of_the_hub_that_is_learnt_from_is_refused(model: Path) -> None:
    lines = ["data=instructions", "data@data.text=python_docs", "data.path=org/name"]
    with pytest.raises(ValueError, match=r"^data\.test=train is the same as data\.train=train"):
        check(model, *lines, "data.train=train", "data.test=train")
    check(model, *lines, "data.train=train", "data.test='train[-9:]'", "data.validation=test")


def test_a_folder_given_for_a_text_file_is_called_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    files = [f"data.train={tmp_path}", f"data.test={tmp_path}/a.txt"]
    with pytest.raises(ValueError, match=r"data\.train=.* is a folder; give its files"):
        check(model, "data=text", *files)


def instructions(folder: Path, *rows: dict[str, object], name: str = "train") -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def check_instructions(model: Path, train: Path, *overrides: str) -> None:
    parts = ["data.validation_examples=1", "data.test_examples=1"]
    text = "data@data.text=python_docs"
    check(model, "data=instructions", text, f"data.train={train}", *parts, *overrides)


def test_sound_instructions_pass(model: Path, tmp_path: Path) -> None:
    check_instructions(model, instructions(tmp_path, *[ALPACA] * 3))


def test_every_line_of_the_instructions_is_checked(model: Path, tmp_path: Path) -> None:
    wrong = {"instruction": "Add.", "input": "", "answer": "3"}
    train = instructions(tmp_path, *[ALPACA] * 5000, wrong)
    message = r"train\.jsonl line 5001 has no field output \(fields: instruction, input, answer\)"
    with pytest.raises(ValueError, match=message):
        check_instructions(model, train)


def test_every_file_of_instructions_is_checked(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    test = instructions(tmp_path, ALPACA, {**ALPACA, "output": " "}, name="test")
    with pytest.raises(ValueError, match=r"test\.jsonl line 2 has an empty output"):
        check_instructions(model, train, f"data.test={test}")
    check_instructions(model, train, f"data.test={test}", "data.empty_answers=true")


def test_instructions_that_are_not_json_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("an instruction\n")
    with pytest.raises(ValueError, match=r"train\.jsonl line 1 is not JSON"):
        check_instructions(model, tmp_path / "train.jsonl")


def test_an_empty_file_of_instructions_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl is empty"):
        check_instructions(model, instructions(tmp_path))


def test_an_unknown_template_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.template=vicuna is not one of alpaca"):
        check_instructions(model, instructions(tmp_path, ALPACA), "data.template=vicuna")


def test_holding_out_every_instruction_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hold 2 examples out of the 2 of data\.train"):
        check_instructions(model, instructions(tmp_path, ALPACA, ALPACA))


def test_a_missing_file_of_instructions_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.train=.*absent\.jsonl does not exist"):
        check_instructions(model, tmp_path / "absent.jsonl")


@pytest.mark.parametrize("data", ["alpaca", "alpaca_gpt4", "commonsense", "gsm8k"])
def test_data_on_the_hub_passes(model: Path, data: str) -> None:
    check(model, f"data={data}", "data.seqlen=16")


def test_the_file_of_a_paper_s_data_is_checked_like_any_other(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, {"question": "1 + 2?", "solution": "3"})
    with pytest.raises(
        ValueError, match=r"data\.train=train \(.*train\.jsonl\) line 1 has no field answer"
    ):
        check(model, "data=gsm8k", f"data.path={train.parent}", "data.seqlen=16")


def test_a_missing_file_of_the_text_is_refused_by_its_own_key(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    files = [f"data.text.train={tmp_path}/absent.txt", f"data.text.test={train}"]
    with pytest.raises(FileNotFoundError, match=r"^data\.text\.train=.*absent\.txt does not exist"):
        check_instructions(model, train, "data@data.text=text", *files)


def test_tokens_files_of_the_text_are_checked_too(model: Path, data: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    files = [f"data.text.{k}={data / k}.safetensors" for k in ("calibration", "train", "test")]
    with pytest.raises(
        ValueError, match=r"data\.text\.calibration=.* has 4 rows, fewer than the 5"
    ):
        check_instructions(
            model, train, "data@data.text=tokens", *files, "data.calibration_samples=5"
        )


def test_a_text_without_files_is_refused_with_its_own_example(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    with pytest.raises(ValueError, match=r"give data\.text\.test=test\.txt"):
        check_instructions(model, train, "data@data.text=text", "data.text.train=a.txt")


def test_both_window_lengths_are_held_against_the_positions(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    for key in ("data.seqlen", "data.text.seqlen"):
        with pytest.raises(ValueError, match=rf"^{key}=33 exceeds .*=32; set {key}=32 or lower"):
            check_instructions(model, train, f"{key}=33")


def test_calibration_samples_reach_the_text(model: Path, tmp_path: Path) -> None:
    train = instructions(tmp_path, *[ALPACA] * 3)
    with pytest.raises(ValueError, match=r"data\.text\.calibration_samples=0 is not"):
        check_instructions(model, train, "data.text.calibration_samples=0")


def test_a_text_named_like_a_key_is_refused_with_the_way_to_choose_it(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.text=ptb is no data source.*data@data\.text=MEM"):
        check(model, "data=python_docs_task", "data.text=ptb", "data.seqlen=16")


def test_pruning_nothing_to_a_sparsity_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"pruner=none keeps every weight, but sparsity is 0\.6"):
        check(model, "pruner=none")


def test_pruning_nothing_at_sparsity_0_passes(model: Path) -> None:
    check(model, "pruner=none", "sparsity=0", "method=none")


def test_an_existing_support_passes_whatever_the_sparsity_key_says(pruned: Path) -> None:
    check(pruned, "pruner=existing", "sparsity=0.3", "pattern=2:4")


def test_a_missing_masks_file_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pruner\.masks=.* does not exist"):
        check(model, "pruner=existing", f"pruner.masks={tmp_path}/masks.safetensors")


def test_the_wanda_variant_with_a_progression_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="use sparsity_schedule=uniform"):
        check(model, "pruner.variant=true", ATP, f"{DIFFERENCE}=0.05")


def test_the_wanda_variant_with_a_pattern_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"not for 2:4; set pruner\.variant=false"):
        check(model, "pruner.variant=true", "pattern=2:4", "sparsity=0.5")


def test_a_sparsegpt_block_that_splits_a_group_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"block_size=130 is not a multiple of 4.*block_size=128"):
        check(model, "pruner=sparsegpt", "pruner.block_size=130", "pattern=2:4", "sparsity=0.5")


def test_an_unknown_dtype_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=int8 is not one of float32"):
        check(model, "model.dtype=int8")


def test_a_mandatory_key_without_a_value_is_refused_with_an_example(model: Path) -> None:
    with pytest.raises(ValueError, match=rf"{DIFFERENCE} has no value.*give {DIFFERENCE}=0\.01"):
        check(model, ATP)


@pytest.mark.parametrize("member", ["cpu", "gpu"])
def test_several_devices_are_for_ddp(model: Path, member: str) -> None:
    with pytest.raises(ValueError, match=f"hardware=ddp hardware.devices=2 .*accelerator={member}"):
        check(model, f"hardware={member}", "hardware.devices=2")
    check(model, "hardware=ddp", f"hardware.accelerator={member}", "hardware.devices=2")


def test_a_mac_has_one_device(model: Path) -> None:
    with pytest.raises(ValueError, match=r"a Mac has one; set hardware\.devices=1"):
        check(model, "hardware=mps", "hardware.devices=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("devices=0", "devices=0 is not an integer of at least 1"),
        ("devices=1.5", "devices=1.5 is not an integer"),
        ("devices=true", "devices=true is not an integer"),
        ("accelerator=tpu", "accelerator=tpu is not one of cpu, gpu"),
    ],
)
def test_hardware_that_cannot_be_is_refused(model: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(model, "hardware=ddp", f"hardware.{override}")


def test_dropout_that_apples_gpu_would_draw_anew_is_refused(model: Path) -> None:
    asked = ("hardware=mps", "hardware.activation_checkpointing=true", "method=losa")
    with pytest.raises(ValueError, match=r"under method\.dropout=0\.1, .* set method\.dropout=0"):
        check(model, *asked)
    check(model, *asked, "method.dropout=0")
    check(model, *asked, "hardware=cpu")


def test_a_process_of_torchrun_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"start sparsemend once, with hardware=ddp .*devices=4"):
        check(model, "hardware=ddp")


@pytest.mark.parametrize("rate", ["0", "-0.001", "fast"])
def test_a_learning_rate_that_trains_nothing_is_refused(model: Path, rate: str) -> None:
    with pytest.raises(
        ValueError, match=rf"method\.learning_rate={rate} is not (a number )?above 0"
    ):
        check(model, f"method.learning_rate={rate}")


@pytest.mark.parametrize("method", ["masked_lora", "lors", "spp", "perp", "lora"])
def test_training_without_a_pruner_is_refused(model: Path, method: str) -> None:
    with pytest.raises(ValueError, match="pruner=none leaves nothing to repair"):
        check(model, f"method={method}", "pruner=none", "sparsity=0")


def test_a_float16_model_trains_with_its_loss_scaled_only(model: Path) -> None:
    with pytest.raises(ValueError, match=r"set method\.precision=16-mixed, which scales it"):
        check(model, "method=lors", "model.dtype=float16")
    check(model, "method=lors", "model.dtype=float16", "method.precision=16-mixed")
    check(model, "method=dsnot", "model.dtype=float16")


@pytest.mark.parametrize("method", ["masked_lora", "lors", "lora", "lora_prune"])
def test_a_rank_larger_than_a_layer_allows_names_the_layer(model: Path, method: str) -> None:
    with pytest.raises(ValueError, match=r"rank=17 exceeds .* = 16 of .*layers\.0.*rank=16"):
        check(model, f"method={method}", "method.rank=17")


def test_the_rank_counts_only_where_an_adapter_has_it(model: Path) -> None:
    check(model, "method=perp", "method.rank=17")
    with pytest.raises(ValueError, match="rank=17 exceeds"):
        check(model, "method=perp", "method.rank=17", "method.trained=[scale_lora]")


def test_the_rank_of_perps_head_is_held_to_the_head(tmp_path: Path) -> None:
    model, head = llama(tmp_path, intermediate=8), ("method=perp", "method.trained=[norms,lm_head]")
    check(model, *head, "method.rank=16")
    with pytest.raises(ValueError, match=r"rank=17 exceeds .* = 16 of lm_head"):
        check(model, *head, "method.rank=17")
    with pytest.raises(ValueError, match=r"rank=16 exceeds .* = 8 of .*mlp"):
        check(model, "method=perp", "method.trained=[lm_head,mask_lora]", "method.rank=16")


def test_groups_that_do_not_divide_the_outputs_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"groups=16 does not divide the 24 outputs of .*mlp"):
        check(model, "method=spp")


def test_resuming_a_folder_of_another_configuration_names_the_keys(
    model: Path, tmp_path: Path
) -> None:
    config = {"sparsity": 0.1}
    stored = {"config": config, "status": "running", "cost": {}}
    (tmp_path / "result.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"another configuration .*data\.name"):
        check(model, f"resume={tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"no result\.json"):
        check(model, f"resume={tmp_path}/nothing")


def test_bf16_true_needs_a_bf16_model(model: Path) -> None:
    with pytest.raises(ValueError, match=r"bf16-true needs a bfloat16 model, .*dtype=float32"):
        check(model, "method.precision=bf16-true", "model.dtype=float32")
    check(model, "method.precision=bf16-true", "model.dtype=bfloat16")


@pytest.mark.parametrize("method", ["seft", "spiel"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("accumulation_steps=19", r"accumulation_steps=19 is not below .* - 1 = 19"),
        ("update_interval=101", r"update_interval=101 is longer than method\.max_steps=100"),
        ("initial_drop_rate=0", r"initial_drop_rate=0 is not in \(0, 1\]"),
        ("initial_drop_rate=1.01", r"initial_drop_rate=1.01 is not in \(0, 1\]"),
        ("budget.density=0.7", r"asks for [\d,]+ deltas, but sparsity 0.5 keeps [\d,]+ weights"),
        ("budget={match: deltas, deltas: 0}", r"budget\.deltas=0 is not an integer of at least 1"),
    ],
)
def test_deltas_that_could_not_evolve_are_refused(
    model: Path, method: str, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(model, f"method={method}", f"method.{override}", "sparsity=0.5")


def test_a_kernel_that_apples_gpu_lacks_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks on Apple's GPU; set method\.kernel=gather"):
        check(model, "method=seft", "method.kernel=sparse", "hardware=mps")
    check(model, "method=seft", "hardware=mps")


@pytest.mark.parametrize("match", ["density", "lora_rank"])
def test_a_budget_without_its_number_is_refused(model: Path, match: str) -> None:
    with pytest.raises(ValueError, match=rf"method\.budget\.{match}=None is not"):
        check(model, "method=seft", f"method.budget={{match: {match}, {match}: null}}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("refill=true", r"compares all weights of a group; set method\.refill=false"),
        ("adapt_scope=global", r"set method\.adapt_scope=layer"),
        ("sensitivity_gradient=last", r"set method\.sensitivity_gradient=rms"),
        ("adapt=false", r"set method\.adapt=true"),
        ("adapt_candidates=base_only", r"set method\.adapt_candidates=all"),
    ],
)
def test_moves_within_groups_that_could_not_hold_them_are_refused(
    model: Path, override: str, message: str
) -> None:
    within = ("method=seft", "method.pattern_growth=within_group", f"method.{override}")
    with pytest.raises(ValueError, match=message):
        check(model, *within, "pattern=2:4", "sparsity=0.5")
    check(model, *within)  # without a pattern there are no groups
    check(model, *within, "pattern=2:4", "sparsity=0.5", "method.grow_scope=active")


def test_moves_within_groups_need_one_pattern(model: Path) -> None:
    with pytest.raises(ValueError, match="needs one N:M, not mixed:8"):
        check(model, "method=seft", "method.pattern_growth=within_group", "pattern=mixed:8")


def test_the_runs_pruner_cannot_prune_back_what_is_pruned_already(pruned: Path) -> None:
    with pytest.raises(ValueError, match=r"set method\.prune_back=magnitude"):
        check(pruned, "method=spiel", "pruner=existing")
    check(pruned, "method=spiel", "pruner=existing", "method.prune_back=support")


def test_deltas_that_can_evolve_pass(model: Path) -> None:
    check(model, "method=seft", "method.accumulation_steps=18", "method.initial_drop_rate=1")
    check(model, "method=spiel", "method.selection=moments")


def test_growth_beyond_the_budget_is_measured_and_not_exported(model: Path) -> None:
    control = ("method=seft", "method.adapt=false")
    check(model, *control)
    check(model, *control, "method.grow_scope=active", "export=true")
    check(model, *control, "pattern=2:4", "sparsity=0.5", "export=true")  # growth stays on it
    with pytest.raises(ValueError, match=r"ends denser than sparsity=0\.6, .*export=false"):
        check(model, *control, "export=true")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("update_interval=76", r"update_interval=76 is not in \[1, .* = 75\]"),
        ("initial_drop_rate=0", r"initial_drop_rate=0 is not in \(0, 1\]"),
        ("drop_schedule=none", r"drop_schedule=none is not one of cosine, linear"),
    ],
)
def test_a_support_that_would_not_move_is_refused(model: Path, override: str, message: str) -> None:
    whole = ("method=masked_full", "model.dtype=float32")
    moving = (*whole, "method.mask_update=rigl", "method.update_interval=50")
    check(model, *moving)
    with pytest.raises(ValueError, match=message):
        check(model, *moving, f"method.{override}")


def test_a_support_with_a_pattern_does_not_move(model: Path) -> None:
    with pytest.raises(ValueError, match=r"breaks pattern 2:4; set method\.mask_update=none"):
        check(
            model,
            "method=masked_full",
            "model.dtype=float32",
            "method.mask_update=set",
            "method.update_interval=50",
            "pattern=2:4",
            "sparsity=0.5",
        )


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("bfloat16", "32-true"), ("bfloat16", "bf16-mixed"), ("float16", "16-mixed")],
)
def test_weights_that_would_not_move_in_their_dtype_are_refused(
    model: Path, dtype: str, precision: str
) -> None:
    asked = ("method=masked_full", f"model.dtype={dtype}", f"method.precision={precision}")
    with pytest.raises(ValueError, match=f"model.dtype={dtype} rounds most .*dtype=float32 and"):
        check(model, *asked)
    check(model, "method=masked_full", "model.dtype=bfloat16", "method.precision=bf16-true")
    check(model, "method=masked_full", "model.dtype=float32", "method.precision=bf16-mixed")


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning", "global", "lamp", "er", "er_plus"])
def test_every_schedule_passes_as_it_is(model: Path, name: str) -> None:
    check(model, f"sparsity_schedule={name}", "sparsity=0.4")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("owl", "granularity=row"), "granularity=row is not one of block, linear"),
        (("owl", "budget=loose"), "budget=loose is not one of exact, reference"),
        (("owl", "spread=0.6"), r"spread=0\.6 is not in \[0, 0\.5\]"),
        (("owl", "outlier_multiple=0"), "outlier_multiple=0 is not above 0"),
        (("owl", "max_sparsity=0.5"), r"sparsity 0\.6 is not in \[0, 0\.5\]"),
        (("dlp", "reduction=max"), "reduction=max is not one of median, mean"),
        (("dlp", "min_sparsity=-1"), r"min_sparsity=-1 is not in \[0, 1\]"),
        (("alphapruning", "metric=alpha"), "metric=alpha is not one of alpha_peak, alpha_mid"),
        (("alphapruning", "bins=2.5"), r"bins=2\.5 is neither a whole number of bins in \[2, "),
        (("alphapruning", "bins=1"), "bins=1 is neither a whole number of bins"),
        (("alphapruning", "bins=0"), r"bins=0 is not in \(0, 1e\+06\]"),
        (("alphapruning", "spread=1.5"), r"spread=1\.5 is not in \[0, 1\]"),
        (("global", "score=random"), "score=random is not one of magnitude, wanda"),
        (("er_plus", "dense=head"), "dense=head is not one of last_linear, last_block"),
        (("file", "path=nowhere.yaml"), "sparsity_schedule.path=nowhere.yaml does not exist"),
    ],
)
def test_an_option_of_a_schedule_that_cannot_work_is_refused(
    model: Path, overrides: tuple[str, str], message: str
) -> None:
    name, option = overrides
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check(model, f"sparsity_schedule={name}", f"sparsity_schedule.{option}")


def test_what_er_plus_leaves_to_prune_is_known_from_the_headers(model: Path) -> None:
    lines = ("sparsity_schedule=er_plus", "sparsity_schedule.dense=last_block")
    check(model, *lines, "sparsity=0.5")
    with pytest.raises(ValueError, match=r"sparsity 0\.51 exceeds 0\.5000"):
        check(model, *lines, "sparsity=0.51")


@pytest.mark.parametrize("name", ["er", "er_plus", "global", "lamp"])
def test_a_mixed_pattern_with_rates_by_linear_is_refused(model: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"rate of its own, which cannot be whole N of .*mixed:8"):
        check(model, f"sparsity_schedule={name}", "pattern=mixed:8")


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning", "er", "lamp", "global"])
def test_a_fixed_pattern_with_any_varying_schedule_is_refused(model: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"pattern 2:4 fixes .*which {name} varies"):
        check(model, f"sparsity_schedule={name}", "pattern='2:4'", "sparsity=0.5")


def test_a_file_of_rates_is_held_against_the_model(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    lines = ("sparsity_schedule=file", f"sparsity_schedule.path={path}")
    path.write_text("0: 0.5\n1: 0.7\n")
    check(model, *lines, "sparsity=0.6")
    with pytest.raises(ValueError, match=r"parameter-weighted mean 0\.600000, not sparsity=0\.7"):
        check(model, *lines, "sparsity=0.7")
    with pytest.raises(ValueError, match=r"keeps 4\.8 of 16 inputs"):
        check(model, *lines, "sparsity=0.6", "pattern=mixed:16", "pattern_tail=reference")
    path.write_text("0: 0.5\n")
    with pytest.raises(ValueError, match=r"7 of 14 linears have no rate, first model\.layers\.1"):
        check(model, *lines, "sparsity=0.5")
    path.write_text("0: 0.5\n1: 0.5\nhead: 0.5\n")
    with pytest.raises(ValueError, match="first 'head'"):
        check(model, *lines, "sparsity=0.5")


def test_a_schedule_of_the_user_s_own_is_not_held_against_our_options(model: Path) -> None:
    check(
        model,
        "sparsity_schedule=owl",
        "sparsity_schedule._target_=json.Owl",  # any module that Python finds
        "sparsity_schedule.granularity=row",
    )


@pytest.mark.parametrize(
    ("knobs", "least"),
    [
        (("method.windows_per_step=8",), 9),  # one full batch, and one window held out
        (("method.windows_per_step=8", "method.held_out=0"), 8),
        (("method.windows_per_step=4",), 5),
    ],
)
def test_too_few_windows_for_reconstruction_are_refused_with_the_number_needed(
    model: Path, knobs: tuple[str, ...], least: int
) -> None:
    given = ("method=reconstruct", *knobs)
    with pytest.raises(ValueError, match=rf"at least data\.calibration_samples={least}, or lower"):
        check(model, *given, f"data.calibration_samples={least - 1}")
    check(model, *given, f"data.calibration_samples={least}")


def test_a_rank_that_reconstruction_does_not_use_is_not_checked(model: Path) -> None:
    check(model, "method=reconstruct", "method.rank=99")
    with pytest.raises(ValueError, match=r"method\.rank=99 exceeds"):
        check(model, "method=reconstruct", "method.rank=99", "method.form=masked_lora")


@pytest.mark.parametrize("term", ["weight", "hidden_weight"])
def test_a_pruned_checkpoint_has_no_dense_model_to_learn_from(pruned: Path, term: str) -> None:
    with pytest.raises(ValueError, match=r"ask to learn from the dense model.*set both to 0"):
        check(pruned, "pruner=existing", f"method.distill.{term}=0.5")
    check(pruned, "pruner=existing")


def test_a_teachers_device_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(
        ValueError, match=r"teacher_device=gpu is not one of cpu, mps, cuda, cuda:N"
    ):
        check(model, "method.distill.weight=0.5", "method.distill.teacher_device=gpu")


def test_a_dense_checkpoint_has_no_support_to_read(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^pruner=existing reads the zeros .* has none; choose"):
        check(model, "pruner=existing")
    with pytest.raises(ValueError, match=r"set method\.prune_back=magnitude"):  # no weight is read
        check(model, "method=spiel", "pruner=existing")
    shutil.copytree(model, tmp_path / "masked")
    (tmp_path / "masked" / "masks.safetensors").touch()  # which is read when the model is there
    check(tmp_path / "masked", "pruner=existing")
