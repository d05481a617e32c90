"""Whether a model's tokenizer has a chat template that works (no torch).

Its text is read from the model folder and compiled before anything heavy is imported; one
conversation is rendered as soon as the tokenizer is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sparsemend.config.locations import resolve_path
from sparsemend.errors import blame

FILES = ("chat_template.jinja", "chat_template.json")
FOLDER = "additional_chat_templates"
SETTINGS = "tokenizer_config.json"
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own mark of answers


def check_chat_template(key: str, model: DictConfig) -> None:
    """Raise ValueError where files of this machine say that the tokenizer has no chat template.

    So where they hold one that is not valid Jinja.
    """
    folder = Path(resolve_path(str(model.get("path", ""))))
    if "architecture" in model or (folder.is_dir() and not _has_template(folder)):
        raise ValueError(lacks_template(key))
    for file, text in _templates(folder):
        _compile(key, file, text)


def check_renders(key: str, tokenizer: Any, *, solved: bool) -> None:
    """Raise ValueError unless the tokenizer's chat template writes a question as a user's turn.

    solved: a solved example, which is a user's turn and its answer, precedes the question.
    """
    if not tokenizer.chat_template:
        raise ValueError(lacks_template(key))
    question = [{"role": "user", "content": "1 + 1?"}]
    answer = [{"role": "assistant", "content": "2"}]
    what = f"{key}=true: the chat template of the tokenizer in {tokenizer.name_or_path}"
    with blame(what, f"mend it there, or set {key}=false"):
        tokenizer.apply_chat_template(
            (question + answer) * solved + question, tokenize=False, add_generation_prompt=True
        )


def lacks_template(key: str) -> str:
    """The message where `key` asks for a template that the tokenizer does not have."""
    return (
        f"{key}=true, but the tokenizer of this model has no chat template "
        f"({FILES[0]}, or chat_template in tokenizer_config.json), as base models have none; set "
        f"{key}=false, or give an instruct model"
    )


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in FILES) or (folder / FOLDER).is_dir():
        return True
    return bool(_in_settings(folder))


def _in_settings(folder: Path) -> Any:
    """`chat_template` of tokenizer_config.json: a text, a list of named ones, or None."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return values.get("chat_template") if isinstance(values, dict) else None


def _templates(folder: Path) -> Iterator[tuple[Path, str]]:
    """File and text of the template that a tokenizer in this folder would take."""
    if (folder / FILES[0]).is_file():
        try:
            yield folder / FILES[0], (folder / FILES[0]).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{folder / FILES[0]} is not UTF-8 text ({error.reason}); convert it"
            ) from error
        return
    template = _in_settings(folder)
    if isinstance(template, list):  # several, of which the default one is taken
        named = [entry for entry in template if isinstance(entry, Mapping)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if isinstance(template, str):
        yield folder / SETTINGS, template


def _compile(key: str, file: Path, text: str) -> None:
    """Raise ValueError, naming the file, where a template is not valid Jinja."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    try:
        environment.from_string(GENERATION.sub("", text))
    except TemplateSyntaxError as error:
        where = f"line {error.lineno} of its chat template: " if error.lineno else ""
        raise ValueError(
            f"{key}=true: {file} is not valid Jinja ({where}{error.message}); mend it, or set "
            f"{key}=false"
        ) from error
