"""The command `sparsemend-generate FOLDER --prompt TEXT`: text as it comes, and how fast it came.

The text goes to standard output, tokens per second go to standard error.  Exit codes: 0 done,
1 a folder, a prompt or a value that was refused, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Sequence

from sparsemend.cli.version import ShowVersion
from sparsemend.engine.build import asked_form
from sparsemend.errors import USER_ERRORS, brief, lacks_memory
from sparsemend.generation.folder import find_place
from sparsemend.generation.settings import Sampling
from sparsemend.preflight.device import NO_DRIVER, may_have_gpu
from sparsemend.terminal import say

COMMAND = "sparsemend-generate"
IN_FLAGS = {  # what errors of all commands advise, in this command's words
    "model.trust_remote_code=true": "--trust-remote-code",
    "give model.path a folder": "give a folder",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stdout is None:
        say("standard output is closed, and the text goes there; leave it open")
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may have letters that a terminal lacks
    try:
        _generate(args)
    except BrokenPipeError:  # of a reader that has enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not (lacks_memory(error) or isinstance(error, USER_ERRORS)):
            raise
        say(_line(error))
        sys.exit(1)
    except KeyboardInterrupt:
        from sparsemend.cli.command import exit_interrupted

        exit_interrupted("")


def _line(error: Exception) -> str:
    """An error of a user's in one line, whose advice are flags of this command."""
    if lacks_memory(error):
        return (
            f"there is not enough memory ({brief(error)}); take shorter texts, or fewer --threads"
        )
    line = str(error)
    for key, flag in IN_FLAGS.items():
        line = line.replace(key, flag)
    return line


def _generate(args: argparse.Namespace) -> None:
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        greedy=args.greedy,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
    )
    most = os.cpu_count() or 1
    if args.threads is not None and not 1 <= args.threads <= most:
        raise ValueError(
            f"--threads {args.threads} is not in [1, {most}], the processors of this machine"
        )
    _check_device(args.device)
    asked_form()
    if args.system is not None and not args.chat:
        raise ValueError("--system is a part of a conversation; add --chat")
    place = find_place(args.folder)
    prompts = [_text(prompt) for prompt in args.prompt or [_standard_input()]]
    from sparsemend.generation.speak import Speaker, speak

    speak(
        place,
        prompts,
        Speaker(sampling=sampling, chat=args.chat, system=args.system),
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        trust_remote_code=args.trust_remote_code,
    )


def _check_device(device: str) -> None:
    """Raise ValueError on another device than a CPU or a card that this machine may have."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ValueError(f"--device {device} is not cpu, cuda or cuda:N")
    if device != "cpu" and not may_have_gpu():
        raise ValueError(f"--device {device}, but {NO_DRIVER}; take --device cpu")


def _standard_input() -> str:
    """The prompt from standard input, without its last newline; ValueError at a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("there is no prompt; give --prompt TEXT, or a text on standard input")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is no text in UTF-8: {error}") from error


def _text(prompt: str) -> str:
    """The prompt; ValueError where bytes of it are no text, which Python hands on as surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no text in UTF-8: {error}") from error
    return prompt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        COMMAND,
        description="Generate text with the model of a folder: one that a run exported "
        "(export=true, export_form=packed or dense), or any Hugging Face folder or hub id.  The "
        "text goes to standard output, tokens per second go to standard error.",
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument("folder", help="a model folder, a run folder, a GGUF file or a hub id")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to go on from; several are answered in turn; without: standard input",
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument(
        "--greedy", action="store_true", help="take the likeliest token, always the same text"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="draw tokens; below 1 the likelier ones"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw of the likeliest, with P of the probability"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw of the K likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default 0")
    parser.add_argument("--threads", type=int, metavar="N", help="without: what torch takes")
    parser.add_argument(
        "--chat", action="store_true", help="ask the prompt in the tokenizer's chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message of --chat")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda or cuda:N, a card that torch can use"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of activations and of what is not packed; without: as it is stored",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that a folder brings"
    )
    return parser


if __name__ == "__main__":
    main()
