"""Compare the tensor names of a checkpoint with its config.json, before anything is loaded.

Transformers gives random numbers to whatever a file does not name as the class does, so a wrapped,
cut or headless checkpoint loads without an error.  What names and shapes alone prove is refused
here; the rest is refused when the model is loaded (`pretrained/`), where the class is at hand.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import BLOCK_TENSOR, DEPTHS, NESTED
from sparsemend.checkpoint.model import ModelConfig

WRAPPERS = {  # a part of a name that only a wrapper writes -> the wrapper
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
}
OUTERMOST = {"module": "DataParallel or DeepSpeed", "base_model": "PEFT"}
LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b")
HEADS = ("lm_head", "embed_out")  # of a language model, at the top of its names
# prefixes of base models, which transformers adds and takes away itself
BASES = ("model", "transformer", "gpt_neox", "language_model", "backbone")
EXTRA = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # blocks that predict later tokens
NAMED = 3


def check_names(path: str, config: ModelConfig, shapes: Mapping[str, TensorShape]) -> None:
    """Raise ValueError where names prove that the file is no checkpoint of config.json's model."""
    check_wrappers(path, shapes)
    check_depth(path, config, shapes)
    check_head(path, config, shapes)


def name_some(names: Iterable[str]) -> str:
    """The first names, shortest numbers first, and how many more there are."""
    ordered = sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in _parts(name)])
    rest = len(ordered) - NAMED
    return ", ".join(ordered[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)  # text and numbers by turns, so that like meets like


def check_wrappers(path: str, names: Iterable[str]) -> None:
    """Raise ValueError on names that a wrapper around the model has written."""
    names = list(names)
    if lora := next((name for name in names if LORA.search(name)), None):
        raise ValueError(
            f"model {path} holds LoRA factors that are not merged, {lora} for one; load it with "
            "peft, call merge_and_unload() and save_pretrained, and give that folder"
        )
    wrapped = _wrapper(names)
    if wrapped is None:
        return
    part, wrapper, name = wrapped
    raise ValueError(
        f"model {path} was saved with {wrapper} around it: its tensors have {part}. in their names "
        f"({name}), so none would be loaded; save the inner model with save_pretrained, or take "
        f"{part}. out of the names"
    )


def _wrapper(names: list[str]) -> tuple[str, str, str] | None:
    """(part of the names, wrapper, a name) or None."""
    for name in names:
        if part := next((p for p in name.split(".") if p in WRAPPERS), None):
            return part, WRAPPERS[part], name
    shared = _common_parts(names)
    if not shared:
        return None
    if shared[0] in OUTERMOST:
        prefix = ".".join(shared[:2]) if shared[:2] == ["base_model", "model"] else shared[0]
        return prefix, OUTERMOST[shared[0]], names[0]
    if shared[0] in BASES:
        return None
    for depth in range(1, len(shared) + 1):
        inner = {".".join(name.split(".")[depth:]).partition(".")[0] for name in names}
        if inner & set(HEADS):
            return ".".join(shared[:depth]), "a module", names[0]
    return None


def _common_parts(names: list[str]) -> list[str]:
    """The parts with which every name begins, the last part of a name left out."""
    split = [name.split(".")[:-1] for name in names]
    if len(split) < 2:
        return []
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))
    return [parts[0] for parts in shared]


def check_depth(path: str, config: ModelConfig, shapes: Mapping[str, TensorShape]) -> None:
    """Raise ValueError where no list of the file is as long as config.json says.

    A model with an encoder of its own (vision, audio) has several lists, and those of a family
    that repeats its blocks is shorter than what runs: any count of blocks that config.json states
    is taken for right, and so is a divisor of it.
    """
    stated = _stated_counts(config.values)
    if config.blocks is None or any(isinstance(v, dict) for v in _encoders(config.values)):
        return
    lists = _block_lists(shapes)
    extra = max((_largest(config.values, key) for key in EXTRA), default=0)
    lengths = [len(indices) for indices in lists.values()]
    fits = any(length - more in stated for length in lengths for more in range(extra + 1))
    repeated = any(length > 1 and config.blocks % length == 0 for length in lengths)
    if not lists or fits or repeated:
        return
    prefix, indices = max(lists.items(), key=lambda item: len(item[1]))
    key = next(name for name in DEPTHS if config.blocks == _largest(config.values, name))
    missing = sorted(set(range(config.blocks)) - indices)
    what = (
        f"what is missing (number {name_some(map(str, missing))}) would be random"
        if missing
        else f"the last {len(indices) - config.blocks} would be left out"
    )
    raise ValueError(
        f"model {path} holds {len(indices)} blocks ({prefix}.{min(indices)} to {prefix}."
        f"{max(indices)}), but its config.json says {key}={config.blocks}: {what}; give the "
        "config.json and the weights of one model"
    )


def _stated_counts(values: Mapping[str, Any]) -> set[int]:
    """Every number of blocks that a config states: integers of keys with `layer`, and lists."""
    counts: set[int] = set()
    for level in _levels(values):
        for key, value in level.items():
            if isinstance(value, list):
                counts.add(len(value))
            elif "layer" in key and isinstance(value, int):
                counts.add(value)
    return counts


def _encoders(values: Mapping[str, Any]) -> Iterator[Any]:
    return (v for k, v in values.items() if k.endswith("_config") and k not in NESTED)


def _levels(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [values, *(values[key] for key in NESTED if isinstance(values.get(key), dict))]


def _largest(values: Mapping[str, Any], key: str) -> int:
    """The largest integer that a config states under a key, on any level; 0 without one."""
    stated = [level[key] for level in _levels(values) if isinstance(level.get(key), int)]
    return max(stated, default=0)


def _block_lists(shapes: Mapping[str, TensorShape]) -> dict[str, set[int]]:
    """Prefix -> numbers of the blocks under it."""
    lists: dict[str, set[int]] = defaultdict(set)
    for name in shapes:
        if match := BLOCK_TENSOR.fullmatch(name):
            number = name[len(match["prefix"]) :].lstrip(".").partition(".")[0]
            lists[match["prefix"]].add(int(number))
    return lists


def check_head(path: str, config: ModelConfig, shapes: Mapping[str, TensorShape]) -> None:
    """Raise ValueError where embedding and head are two matrices and the file holds one of them."""
    levels = _levels(config.values)
    tied = [level["tie_word_embeddings"] for level in levels if "tie_word_embeddings" in level]
    if any(tied) or not tied:  # most classes tie where nothing is said
        return
    outside = {name: shape for name, shape in shapes.items() if not BLOCK_TENSOR.fullmatch(name)}
    # some embed a few more tokens than the head predicts
    wide = [n for n, s in outside.items() if len(s) == 2 and max(s) >= (config.vocabulary or 0)]
    if len(wide) == 1:
        raise ValueError(
            f"model {path} holds one matrix of vocab_size={config.vocabulary}, {wide[0]}, but "
            "its config.json says tie_word_embeddings=false: embedding or head is missing and "
            "would be random; give a checkpoint of the whole causal LM, or set "
            "tie_word_embeddings to true if the two are one"
        )
