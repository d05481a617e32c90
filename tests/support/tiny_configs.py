"""Tiny configs of any model type: the sizes of transformers' defaults, made small by their names.

SIZES says what a size of some name becomes at most, EXCEPTIONS what no rule of names can say: sizes
that must divide each other, and values that a default leaves out.  Lists with an entry per layer
keep one layer of every kind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 96
WORDS = range(3, 80)  # tokens of text; those above are for images, sounds and what surrounds them
LAYERS, MAX_LAYERS = 2, 3

# (expression for the whole name, largest value); the first that matches decides
SIZES: list[tuple[str, int]] = [
    (r"(unpadded_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(swa_)?num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups", 2),
    (r"(linear_)?num_key_heads", 2),
    (r".*head_dim|dim_head|d_head|d_kv|kv_channels|rotary_dim", 8),
    (r"(\w+_)?heads|n_head", 4),
    (r".*lora_rank|o_groups", 16),
    (r"(moe_|shared_|shared_experts?_|moe_shared_expert_)intermediate_size", 16),
    (r"expert_ffn_hidden_size|share_expert_dim", 16),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|ffn_hidden_size|d_ff|mlp_dim|dim_ff|dff", 48),
    (r"hidden_size_per_layer_input", 8),
    (r".*hidden_size|d_model|n_embd|(word_)?(emb|embed|embedding)(_proj)?_dim|lru_width", 32),
    (r"output_dim|projection_dim|.*projector_(input|output)_dim|ple_embed_dim", 32),
    (r"(\w+_)?(hidden_|encoder_|decoder_)?layers?|n_layers?|depth", LAYERS),
    (r"(num_|num_local_|n_routed_|moe_num_)experts", 4),
    (r"(n_|num_|moe_num_)shared_experts", 1),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k", 2),
    (r"n_group|topk_group|first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"max_position_embeddings|original_max_position_embeddings|n_positions|n_ctx", 128),
    (r"max_(seq|sequence)_len(gth)?|model_max_length|seq_len|context_length", 128),
    (r"max_(source|target)_positions", 128),
    (r"sliding_window(_size)?|attention_window_size|local_attention|(\w+_)?chunk_size", 8),
    (r"image_size|crop_size|resolution", 28),
    (r"patch_size", 14),
    (r"\w+_n_?groups|n_groups|n_mamba_heads", 1),
    (r"laurel_rank|num_query_tokens|mm_tokens_per_image", 4),
]
PER_LAYER = r"(mlp_)?layer_types|layers_block_type|indexer_types"
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# by model type; keys of a nested config are written with dots
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "afmoe": {"num_experts_per_tok": 3},  # of two, one expert gets no token
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "attn_layer_indices": [1],
    },
    "bart": {"is_decoder": True, "is_encoder_decoder": False},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "mlp"] * 3,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
    },
    "falcon_h1": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
    },
    "falcon_mamba": {"hidden_size": 128, "state_size": 4, "time_step_rank": 4},
    "gemma3n_text": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 1,
        "intermediate_size": [48, 48, 48],
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
    },
    "gemma4": {
        "text_config.num_kv_shared_layers": 0,
        "text_config.per_layer_config": {},
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}},
    },
    "glm4v": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [1, 1, 0]},
    "glm_ocr": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "glm46v": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        "num_hidden_layers": 3,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "mamba_d_state": 4,
        "hidden_size": 64,
    },
    "jetmoe": {"num_experts_per_tok": 4},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "num_dense_layers": 1,
    },
    "llama4_text": {
        "num_hidden_layers": 2,
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
    },
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2, "qk_head_dim": 16, "moe_topk": 2},
    "mamba": {"hidden_size": 128, "state_size": 4, "time_step_rank": 4},
    "mamba2": {"hidden_size": 64, "num_heads": 16, "head_dim": 8, "state_size": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "hidden_size": 64,
        "mamba_num_heads": 16,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
    },
    "openai-gpt": {"n_positions": 128},
    "paddleocr_vl": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "paligemma": {"text_config.num_key_value_heads": 1},
    "qwen2_5_omni_thinker": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "qwen2_5_vl": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "qwen2_vl": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "recurrent_gemma": {
        "hidden_size": 64,
        "lru_width": 64,
        "num_attention_heads": 8,
        "intermediate_size": 384,
    },
    "rwkv": {"attention_hidden_size": 32},
    "vit": {"image_size": 28},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "hybrid_layer_ids": [1, 2],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "mamba_d_state": 8,
        "adapter_rank": 4,
    },
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The config of a tiny model of one type; its special tokens are no WORDS."""
    specials = iter(range(VOCABULARY - 1, WORDS.stop - 1, -1))
    values = _shrink(CONFIG_MAPPING[model_type](), specials)
    for path, value in EXCEPTIONS.get(model_type, {}).items():
        *folders, key = path.split(".")
        inner = values
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[key] = value
    return AutoConfig.for_model(model_type, **values)


def _shrink(default: PreTrainedConfig, specials: Iterator[int]) -> dict[str, Any]:
    """What of a default config to give anew; what is not in it keeps its default."""
    saved = default.to_dict()  # under other names, some of them; inner configs are dictionaries
    defaults = {
        key: saved[key] if isinstance(saved.get(key), int | list) else getattr(default, key, None)
        for key in inspect.signature(type(default)).parameters
    }
    values: dict[str, Any] = {}
    for key, value in defaults.items():
        if isinstance(value, PreTrainedConfig):
            values[key] = {"model_type": value.model_type, **_shrink(value, specials)}
        elif key in SPECIAL:
            values[key] = SPECIAL[key]
        elif re.fullmatch(r"\w+_token_(id|index)", key) and isinstance(value, int):
            values[key] = next(specials)
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for name, size in SIZES if re.fullmatch(name, key)), value)
            values |= {key: size} if size < value else {}
    if {"kv_lora_rank", "qk_rope_head_dim"} <= defaults.keys():
        values["num_key_value_heads"] = values["num_attention_heads"]  # a key for every head
    return values | _one_layer_of_every_kind(defaults, values)


def _one_layer_of_every_kind(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The lists with an entry per layer, shortened, and the number of layers that is theirs."""
    lists = {key: v for key, v in defaults.items() if re.fullmatch(PER_LAYER, key) and v}
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=False))
    layers = sorted({kinds.index(kind) for kind in kinds})[:MAX_LAYERS]
    layers += layers[-1:] * (LAYERS - len(layers))
    counts = [key for key in values if re.fullmatch(r"num_hidden_layers|n_layers?|num_layers", key)]
    return {
        **{key: [entries[layer] for layer in layers] for key, entries in lists.items()},
        **dict.fromkeys(counts, len(layers)),
    }
