"""Turn a GGUF file into a model folder, in a process of its own: `-m sparsemend.pretrained.gguf`.

transformers reads the file (its tables of names, orders and types) and gives every weight back as
a number, in fp32; what it would pass over in silence is refused here.  One process at a time makes
a folder; the others wait for it.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.utils.quantization_config import GgufConfig

from sparsemend.checkpoint.gguf import SOURCE, make_room, plain_name, read_checked, whole
from sparsemend.checkpoint.gguf_header import GgufHeader
from sparsemend.checkpoint.names import name_some
from sparsemend.config.gguf import FORM, digest_of
from sparsemend.errors import USER_ERRORS, blame
from sparsemend.files import file_digest, give_usual_mode, write_json, write_text
from sparsemend.pretrained.cause import cause
from sparsemend.pretrained.tensors import check_tensors

# `tokenizer.ggml.pre` of byte-level vocabularies, by how llama.cpp splits text before it merges
# (llama_vocab::impl::load and llm_tokenizer_bpe): as GPT-2, or every digit alone and then as GPT-2
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
CARD = """---
{front_matter}---
# {name}

The weights of `{name}`, stored there as {stored_as}, turned back into numbers by sparsemend.
"""


def convert(file: Path, folder: Path) -> None:
    """Make the folder of a file, unless it is there whole; raises ValueError in one line.

    Raises OSError where the folder cannot be written or would not fit.
    """
    header = read_checked(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if whole(folder):
            return
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
            shutil.rmtree(left, ignore_errors=True)  # of a killed process: we hold its lock
        make_room(folder, header)
        try:
            partial.mkdir()
            _fill(file, header, partial)
            shutil.rmtree(folder, ignore_errors=True)  # a spoilt one
            partial.rename(folder)
        except Exception as error:
            if "No space left on device" not in str(error):
                raise
            raise OSError(
                f"{folder.parent} has become full; set SPARSEMEND_CACHE to a folder on a larger "
                "disk"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(file: Path, header: GgufHeader, folder: Path) -> None:
    """Write weights, config, tokenizer, a card, and last of all what was done."""
    model = load_gguf(file, header)
    model.save_pretrained(folder)
    stored_as = header.stored_as()
    entries = [
        f"the weights of {file.name} were {header.bits}-bit: {stored_as}, turned back into numbers"
    ]
    entries += _save_tokenizer(file, header, folder)
    facts = {
        "license": header.values.get("general.license"),
        "base_model": file.name,
        "tags": ["sparsemend", "gguf"],
    }
    front_matter = yaml.safe_dump({k: v for k, v in facts.items() if v}, sort_keys=False)
    card = CARD.format(front_matter=front_matter, name=file.name, stored_as=stored_as)
    write_text(folder / "README.md", card)
    give_usual_mode(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entry = {
        "form": FORM,
        "file": file.name,
        "digest": digest_of(file),
        "files": {str(p.relative_to(folder)): file_digest(p) for p in files},
        "stored_as": stored_as,
        "remarks": entries,
    }
    write_json(folder / SOURCE, entry)


def load_gguf(file: Path, header: GgufHeader) -> PreTrainedModel:
    """The model of a file, whole, in fp32; raises ValueError in one line."""
    with blame(f"model {file} cannot be loaded", say=cause):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),  # the default keeps some packed
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    model, report = loaded
    check_tensors(str(file), model, report)
    _check_scales(file, header)
    _check_used(file, header, model)
    result: PreTrainedModel = model
    return result


def _check_scales(file: Path, header: GgufHeader) -> None:
    """Raise ValueError on a factor of the forward pass that transformers does not read."""
    tables: dict[str, Any] = {
        plain_name(name): table for name, table in GGUF_CONFIG_MAPPING.items()
    }
    table: Mapping[str, Any] = tables.get(plain_name(header.architecture), {})
    if not table:
        return  # of an architecture with a function of its own
    prefix = f"{header.architecture}."
    for key, value in header.values.items():
        inner = key.removeprefix(prefix)
        if key == inner or "scal" not in inner or inner in table:
            continue
        if value not in ("none", "", 0, 1, False):
            raise ValueError(
                f"{file} says {key}={value}, which transformers does not read from GGUF, so its "
                "outputs would be wrong; give the folder of safetensors that it was made from"
            )


def _check_used(file: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Raise ValueError where the file holds more numbers than the model has parameters."""
    held = sum(parameter.numel() for parameter in model.parameters())
    tensors = dict(header.tensors)
    if model.config.get_text_config().tie_word_embeddings:
        tensors.pop("output.weight", None)  # a second copy of the embedding
    if (extra := GgufHeader(header.values, tensors).weights - held) > 0:
        blockless = [name for name in tensors if not name.startswith("blk.")]
        raise ValueError(
            f"{file} holds {extra:,} numbers more than {type(model).__name__} has parameters, so "
            f"its outputs would be wrong (outside its blocks: {name_some(blockless)}); give the "
            "folder of safetensors that it was made from"
        )


def _save_tokenizer(file: Path, header: GgufHeader, folder: Path) -> list[str]:
    """Write the tokenizer, if the file has one; returns what is to be said about it."""
    if "tokenizer.ggml.tokens" not in header.values:
        return []
    with blame(f"model {file} cannot give its tokenizer", say=cause):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        split = header.values.get("tokenizer.ggml.pre")
        byte_level = header.values.get("tokenizer.ggml.model") == "gpt2"
        if byte_level and split in DIGITS_ALONE:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        tokenizer.save_pretrained(folder)
    if byte_level and split not in (*DIGITS_ALONE, *AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        return [
            f"{file.name} splits text by the rule {split}, which transformers does not have: its "
            "tokenizer splits as GPT-2's, so that some texts may give other tokens"
        ]
    return []


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except USER_ERRORS as error:
        print(cause(error) if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(1)
