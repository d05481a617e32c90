"""Try an exported folder where people run models: in vLLM, and in llama.cpp's converter.

    python tests/run/try_engines.py FOLDER [--converter .../llama.cpp/convert_hf_to_gguf.py]

A line each: what agreed, or that it was not tried and why.  vLLM must load the folder and give the
greedy tokens of transformers, of which rounding may turn a few; the converter's float32 file must
have the zeros of the folder.  Ends with 1 where one of them fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsemend.checkpoint.gguf_header import read_gguf_header
from sparsemend.checkpoint.headers import weight_files

PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time", "1, 2, 3, 4,")
TOKENS = 16
LEAST = 0.75  # of greedy tokens that must agree: one that turns changes all that follow


class NotTried(Exception):
    """Why an engine was not tried."""


def vllm(folder: Path) -> tuple[bool, str]:
    """Whether vLLM loads the folder and generates what transformers does, and how much of it."""
    if find_spec("vllm") is None:
        raise NotTried("vllm is not installed")
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    engine = LLM(model=str(folder), enforce_eager=True, max_model_len=256)
    settings = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    agreed = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = greedy(model, ids)
        (answer,) = engine.generate([{"prompt_token_ids": ids[0].tolist()}], settings)
        pairs = zip(expected, answer.outputs[0].token_ids, strict=True)
        agreed += sum(one == other for one, other in pairs)
    total = TOKENS * len(PROMPTS)
    return agreed >= LEAST * total, f"{agreed} of {total} greedy tokens are those of transformers"


@torch.no_grad()
def greedy(model: Any, ids: torch.Tensor) -> list[int]:
    """TOKENS more tokens, whatever the model takes for an end."""
    tokens = ids
    for _ in range(TOKENS):
        following = model(input_ids=tokens).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], dim=1)
    answer: list[int] = tokens[0, ids.shape[1] :].tolist()
    return answer


def converter(folder: Path, script: Path | None) -> tuple[bool, str]:
    """Whether llama.cpp's converter keeps every zero of the blocks' matrices, and their number."""
    if script is None:
        raise NotTried("no --converter, the path of llama.cpp's convert_hf_to_gguf.py")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        command = [sys.executable, script, folder, "--outfile", file, "--outtype", "f32"]
        paths = [str(script.parent / "gguf-py"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return False, lines[-1] if lines else f"ended with {done.returncode}"
        found, expected = zeros_of_gguf(file), zeros_of_folder(folder)
    return found == expected, f"{found:,} zeros of the blocks' matrices, {expected:,} in the folder"


def zeros_of_gguf(file: Path) -> int:
    """Zeros among the float32 matrices of the blocks in a GGUF file."""
    data, count = np.memmap(file, mode="r"), 0
    for name, tensor in read_gguf_header(file).tensors.items():
        if name.startswith("blk.") and len(tensor.shape) > 1:
            numbers = data[tensor.begin : tensor.begin + tensor.length].view(np.float32)
            count += numbers.size - int(np.count_nonzero(numbers))
    return count


def zeros_of_folder(folder: Path) -> int:
    """Zeros among the matrices whose names have a number, as those of blocks do."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a mapping
                if any(part.isdigit() for part in name.split(".")):
                    tensor = opened.get_tensor(name)
                    if tensor.ndim > 1 and tensor.is_floating_point():
                        count += tensor.numel() - int(tensor.count_nonzero())
    return count


def report(name: str, attempt: Callable[[], tuple[bool, str]]) -> bool:
    """Print the line of an engine; return whether it did not fail."""
    try:
        passed, line = attempt()
    except NotTried as reason:
        print(f"{name}: not tried, {reason}")
        return True
    except Exception as error:
        passed, line = False, f"{type(error).__name__}: {error}"
    print(f"{name}: {'passed' if passed else 'FAILED'}, {line}")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--converter", type=Path)
    asked = parser.parse_args(arguments)
    try:
        weight_files(asked.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    results = [
        report("vllm", lambda: vllm(asked.folder)),
        report("llama.cpp converter", lambda: converter(asked.folder, asked.converter)),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
