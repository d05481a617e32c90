"""Which saved tensors are the linears of the decoder blocks: by names, shapes and config.json.

The weight of a linear is saved as (O, I); by a Conv1D, as GPT-2 has, as (I, O); those of the
experts of a mixture one by one, or as a stack (E, O, I) or (E, I, O).  Which axis of a tensor runs
over the inputs follows from the biases beside it, which are as long as the outputs, from the tensor
that it feeds or is fed by, from the width in config.json, and last from the model type.  Norms,
convolutions and embeddings are no linears; whether the router of a mixture is one, no file says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from sparsemend.checkpoint.headers import TensorShape

BLOCK_TENSOR = re.compile(r"(?P<prefix>.*?)\.?\b\d+\.(?P<rest>.+)")
NESTED = ("text_config", "llm_config", "language_config")  # multimodal configs hold the LM inside
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
EXTRA_DEPTHS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # blocks after the last
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "embed_dim")

# a part of the name of what is not the text decoder
TOWER = re.compile(r"vision|visual|\bvit|image|img|audio|speech|video|tower|\bsam|qformer|encoder_")
TEXT = re.compile(r"decoder|language|text|\bllm\b")
EMBEDDING = re.compile(r"embed|relative_attention_bias")
EXPERTS = re.compile(r"(^|\.)(\w*experts?|moe|input_linear|output_linear)(\.|$)")
DBRX = re.compile(r"experts\.mlp\.(w1|v1|w2)$")  # (E * inner, width), of w2 inputs first
SCALE = re.compile(r"(bias|scale|scales|scale_inv|zeros|blocks)$")
DOWN = re.compile(r"down|output|w2\b|w2_|fc2|c_proj|linear_2")  # the last linear of an expert
GATED = re.compile(r"gate_(and_)?up|w13|input_linear|fc1")  # gate and up in one tensor

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # transformers' Conv1D
UNGATED = ("jetmoe",)  # its input_linear is one linear of an expert
INPUTS_FIRST = ("gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter")


@dataclass(frozen=True)
class Stored:
    """A saved tensor with the weight of a linear, or of one linear per expert.

    shape: of the tensor; inputs_last: whether its last axis runs over the inputs, else the one
    before it does.
    """

    shape: TensorShape
    inputs_last: bool = True

    @property
    def matrix(self) -> tuple[int, int]:
        """(O, I) of one linear."""
        rows, columns = self.shape[-2:]
        return (rows, columns) if self.inputs_last else (columns, rows)

    @property
    def stack(self) -> int:
        """The number of linears in the tensor."""
        return prod(self.shape[:-2])

    @property
    def weights(self) -> int:
        return prod(self.shape)


def block_tensors(
    shapes: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> dict[str, TensorShape]:
    """The tensors inside the blocks of the text decoder; config: the content of config.json.

    Of the lists `prefix.NUMBER.rest`, those of a vision or audio tower come last; then the one as
    deep as the config says, the one that is called a decoder or text, the one with the most
    parameters.  Blocks that only predict further tokens, after the last one, are left out.
    """
    inside: dict[str, dict[str, TensorShape]] = {}
    for name, shape in shapes.items():
        if match := BLOCK_TENSOR.fullmatch(name):
            inside.setdefault(match["prefix"], {})[name] = shape
    if not inside:
        return {}
    text = text_values(config)
    depths = _numbers(text, DEPTHS)
    extra = sum(_numbers(text, EXTRA_DEPTHS))
    deep = {depth + more for depth in depths for more in (0, extra)}

    def rank(prefix: str) -> tuple[bool, bool, bool, int]:
        tensors = inside[prefix]
        blocks = {block_number(name) for name in tensors}
        parameters = sum(map(prod, tensors.values()))
        named = TEXT.search(prefix) is not None
        return TOWER.search(prefix) is None, len(blocks) in deep, named, parameters

    tensors = inside[max(inside, key=rank)]
    if extra and depths:
        kept = {name: s for name, s in tensors.items() if block_number(name) < depths[0]}
        tensors = kept or tensors
    return tensors


def block_number(name: str) -> int:
    """The number of the block that a tensor or linear lies in."""
    match = BLOCK_TENSOR.fullmatch(name)
    assert match, name
    return int(name[len(match["prefix"]) : len(name) - len(match["rest"])].strip("."))


def text_values(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a config.json that its language model has, those of the whole below them."""
    if config is None:
        return {}
    inner = [config[key] for key in NESTED if isinstance(config.get(key), dict)]
    return {**config, **(inner[0] if inner else {})}


def _numbers(values: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    return [values[name] for name in names if type(values.get(name)) is int]


def stored_linears(
    blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> dict[str, Stored]:
    """Name of a saved tensor, without a final `.weight` -> how it holds its linears."""
    text = text_values(config)
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in blocks.items()
        if name.endswith(".weight") and len(shape) == 2 and not _is_embedding(name)
    }
    inputs_first = _conv1d(matrices, blocks, text)
    linears = {name: Stored(shape, name not in inputs_first) for name, shape in matrices.items()}
    for stacks in _stacks(blocks).values():
        last = _inputs_last(stacks, blocks, text)
        linears |= {name: Stored(shape, last) for name, shape in stacks.items()}
    linears |= {
        name: Stored(shape, not name.endswith("w2"))
        for name, shape in blocks.items()
        if len(shape) == 2 and DBRX.search(name)
    }
    return {
        key: linears[key] for name in blocks if (key := name.removesuffix(".weight")) in linears
    }


def has_experts(names: Iterable[str]) -> bool:
    """Whether linears or tensors of these names are experts of a mixture."""
    return any(EXPERTS.search(name.partition("[")[0]) for name in names)


def _is_embedding(name: str) -> bool:
    match = BLOCK_TENSOR.fullmatch(name)
    return EMBEDDING.search(match["rest"] if match else name) is not None


def _conv1d(
    matrices: Mapping[str, TensorShape], blocks: Mapping[str, TensorShape], text: Mapping[str, Any]
) -> set[str]:
    """The matrices that are stored (I, O).

    A bias that is as long as the second axis alone says so, a square matrix follows the others; a
    matrix without a bias follows the model type.
    """
    biases = {name: blocks[bias] for name in matrices if (bias := f"{name}.bias") in blocks}
    long = {name: shape[0] for name, shape in biases.items() if len(shape) == 1}
    wide = {name for name, length in long.items() if length == matrices[name][1]}
    tall = {name for name, length in long.items() if length == matrices[name][0]}
    of_type = text.get("model_type") in CONV1D
    if tall - wide or not (wide - tall or of_type):
        return set()
    return wide | (set(matrices) - set(long) if of_type else set())


def _stacks(blocks: Mapping[str, TensorShape]) -> dict[str, dict[str, TensorShape]]:
    """Module of experts -> its three-dimensional weights by name."""
    stacks: dict[str, dict[str, TensorShape]] = {}
    for name, shape in blocks.items():
        key = name.removesuffix(".weight")
        if len(shape) == 3 and min(shape[1:]) > 1 and EXPERTS.search(key) and not SCALE.search(key):
            stacks.setdefault(key.rpartition(".")[0], {})[key] = shape
    return stacks


def _inputs_last(
    stacks: Mapping[str, TensorShape], blocks: Mapping[str, TensorShape], text: Mapping[str, Any]
) -> bool:
    """Whether the stacks (E, a, b) of one module are (E, O, I), as more of their sizes agree.

    The module's first linears read, and its last one writes, the width of the model; the last one
    reads what the first ones write, or half of it where gate and up lie in one tensor.
    """
    agree = {last: _agreements(stacks, blocks, text, last) for last in (True, False)}
    if agree[True] == agree[False]:
        return text.get("model_type") not in INPUTS_FIRST
    return agree[True] > agree[False]


def _agreements(
    stacks: Mapping[str, TensorShape],
    blocks: Mapping[str, TensorShape],
    text: Mapping[str, Any],
    last: bool,
) -> int:
    """The number of statements about the sizes that hold if inputs lie on that axis."""
    width = _numbers(text, WIDTHS)[:1]
    sizes = {name: Stored(shape, last).matrix for name, shape in stacks.items()}
    down = [size for name, size in sizes.items() if DOWN.search(name.rpartition(".")[2])]
    up = [size for name, size in sizes.items() if not DOWN.search(name.rpartition(".")[2])]
    holds = [
        blocks[bias][-1] == outputs
        for name, (outputs, _) in sizes.items()
        for bias in (f"{name}_bias", f"{name}.bias")
        if blocks.get(bias)
    ]
    holds += [inputs in width for _, inputs in up] + [outputs in width for outputs, _ in down]
    holds += [inputs == outputs for _, inputs in up for outputs, _ in down]
    holds += [outputs in (inner, 2 * inner) for outputs, _ in up for _, inner in down]
    return sum(holds)


def linear_shapes(
    blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> dict[str, TensorShape]:
    """Name -> (O, I) of every linear inside the blocks; those of a stack are told apart.

    The linears of expert 3 are `...experts.down_proj[3]`, and of a tensor with gate and up in one
    `...experts.gate_up_proj[3, gate]` and `[3, up]`: the forms of `layout/README.md`.
    """
    text = text_values(config)
    shapes: dict[str, TensorShape] = {}
    for name, stored in stored_linears(blocks, config).items():
        outputs, inputs = stored.matrix
        experts = stored.stack
        if len(stored.shape) == 2:
            experts = _experts_in_rows(text) if DBRX.search(name) else 0
            if not experts or stored.shape[0] % experts:
                shapes[name] = stored.matrix
                continue
            rows, columns = stored.shape[0] // experts, stored.shape[1]
            outputs, inputs = (rows, columns) if stored.inputs_last else (columns, rows)
        gated = text.get("model_type") not in UNGATED and GATED.search(name.rpartition(".")[2])
        halves = gated and outputs % 2 == 0
        for expert in range(experts):
            if halves:
                shapes[f"{name}[{expert}, gate]"] = (outputs // 2, inputs)
                shapes[f"{name}[{expert}, up]"] = (outputs // 2, inputs)
            else:
                shapes[f"{name}[{expert}]"] = (outputs, inputs)
    return shapes


def _experts_in_rows(text: Mapping[str, Any]) -> int:
    """The number of experts of DBRX, whose tensors have them one after the other; 0 if unknown."""
    section = text.get("ffn_config")
    experts = section.get("moe_num_experts") if isinstance(section, Mapping) else None
    return experts if type(experts) is int and experts > 0 else 0


def other_weights(
    blocks: Mapping[str, TensorShape], linears: Mapping[str, Stored]
) -> dict[str, TensorShape]:
    """The tensors of the blocks whose weights multiply activations as no linear of ours does.

    Norms, biases, convolutions (a kernel per channel) and embeddings are none of them.
    """
    return {
        name: shape
        for name, shape in blocks.items()
        if len(shape) > 1
        and min(shape[1:]) > 1
        and name.removesuffix(".weight") not in linears
        and not SCALE.search(name)
        and not _is_embedding(name)
    }
