"""GGUF files of tiny LLaMAs, written by the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = {  # of a LLaMA: transformers' name -> llama.cpp's
    r"model\.embed_tokens\.weight": "token_embd.weight",
    r"model\.norm\.weight": "output_norm.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blk.\1.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blk.\1.ffn_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.weight": r"blk.\1.attn_\2.weight",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight": r"blk.\1.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": r"blk.\1.ffn_\2.weight",
}
Edit = Callable[[gguf.GGUFWriter], None]


def write_llama(
    file: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    split: str = "gpt-2",
    quantisation: gguf.GGMLQuantizationType | None = None,
    edit: Edit = lambda writer: None,
) -> Path:
    """Write a LLaMA in fp32, or its linears in a quantised type; `edit` may write more.

    split: `tokenizer.ggml.pre`, the rule by which text is split before merges.
    """
    config: Any = model.config
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_license("mit")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, split)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        weight = tensor.detach().numpy()
        if re.search(r"[qk]_proj", name):
            weight = interleaved(weight, heads if "q_proj" in name else key_value_heads)
        patterns = (p for p in NAMES if re.fullmatch(p, name))
        stored = re.sub(pattern := next(patterns), NAMES[pattern], name)
        if quantisation is not None and "proj" in name:
            packed = gguf.quants.quantize(weight, quantisation)
            writer.add_tensor(stored, packed, raw_dtype=quantisation)
        else:
            writer.add_tensor(stored, weight)
    edit(writer)
    return finish(writer, file)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix (O, I) in llama.cpp's order.

    RoPE turns pairs of a head's outputs: transformers pairs output i with i + half, llama.cpp 2 i
    with 2 i + 1.
    """
    by_half = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(by_half.swapaxes(1, 2).reshape(weight.shape))


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, split: str) -> None:
    """A byte-level BPE vocabulary with its merges."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {entry["content"] for entry in backend["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = backend["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def write_values(file: Path, architecture: str, edit: Edit = lambda writer: None) -> Path:
    """A file of one small tensor, with what `edit` writes."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    edit(writer)
    return finish(writer, file)


def finish(writer: gguf.GGUFWriter, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
