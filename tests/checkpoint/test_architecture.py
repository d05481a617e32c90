"""The class that loads a model, chosen from its config.json and from transformers' own tables."""

from __future__ import annotations

import pytest
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto import configuration_auto, modeling_auto

from sparsemend.checkpoint.architecture import (
    CAUSAL,
    IMAGE_TEXT,
    Architecture,
    installed_tables,
    renames_tensors,
)


def test_the_tables_read_as_text_are_those_that_transformers_imports() -> None:
    tables = installed_tables()
    assert tables is not None
    assert tables.causal == dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert tables.image_text == dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert tables.types <= set(configuration_auto.CONFIG_MAPPING_NAMES)
    assert len(tables.types) > 500


@pytest.mark.parametrize(
    ("model_type", "named", "auto"),
    [
        ("llama", "LlamaForCausalLM", CAUSAL),
        ("llama", "", CAUSAL),
        ("gpt2", "GPT2LMHeadModel", CAUSAL),
        ("llava", "LlavaForConditionalGeneration", IMAGE_TEXT),
        ("qwen2_vl", "", IMAGE_TEXT),
        ("llama4", "Llama4ForConditionalGeneration", IMAGE_TEXT),  # whole, not the language part
        ("mllama", "MllamaForConditionalGeneration", IMAGE_TEXT),
        ("mllama", "MllamaForCausalLM", CAUSAL),
        ("bart", "BartForCausalLM", CAUSAL),  # the decoder of one, saved alone
        ("vit", "ViTModel", None),
    ],
)
def test_the_class_that_a_config_names_decides(
    model_type: str, named: str, auto: str | None
) -> None:
    tables = installed_tables()
    assert tables is not None
    values = {"model_type": model_type, "architectures": [named] if named else None}
    assert Architecture.of(values).auto_class(tables) == auto


@pytest.mark.parametrize("family", ["Bart", "Florence2"])
def test_an_encoder_decoder_has_no_class_here(family: str) -> None:
    tables = installed_tables()
    assert tables is not None
    named = {"model_type": family.lower(), "architectures": [f"{family}ForConditionalGeneration"]}
    values = {**named, "text_config": {"is_encoder_decoder": True}}
    assert Architecture.of(values).auto_class(tables) is None


@pytest.mark.parametrize(
    "odd", [{"architectures": 1}, {"architectures": "LlamaForCausalLM"}, {"auto_map": "x.Y"}]
)
def test_a_class_that_is_no_name_is_refused(odd: dict[str, object]) -> None:
    (key,) = odd
    with pytest.raises(ValueError, match=rf"config\.json says {key}="):
        Architecture.of({"model_type": "llama", **odd})


def test_the_types_whose_tensors_get_other_names_are_those_of_transformers() -> None:
    types = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    renamed = {kind for kind in types if get_checkpoint_conversion_mapping(kind)}
    assert {"mixtral", "bailing_hybrid", "kimi_linear"} <= renamed
    assert not [kind for kind in renamed if not renames_tensors(kind)]
    assert not renames_tensors("llama")
