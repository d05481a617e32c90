"""Which of transformers' classes loads a model, decided by what its config.json names.

A causal LM is loaded by AutoModelForCausalLM.  A multimodal model is loaded whole, by
AutoModelForImageTextToText, where its config names that class: for some families
AutoModelForCausalLM would take the language part alone and drop the rest of the file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CAUSAL, IMAGE_TEXT = "AutoModelForCausalLM", "AutoModelForImageTextToText"
ClassNames = Mapping[str, str | tuple[str, ...]]  # model type -> class


@dataclass(frozen=True)
class Tables:
    """What transformers can load: model types, and the classes of language models among them."""

    types: frozenset[str]
    causal: ClassNames
    image_text: ClassNames


@dataclass(frozen=True)
class Architecture:
    """The lines of a config that say what the model is."""

    model_type: str
    named: tuple[str, ...]  # `architectures`
    encoder_decoder: bool
    code: str | None  # the class of the checkpoint's own Python code, FILE.CLASS

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Architecture:
        """Read from the values of a config.json, or of a transformers config as a dictionary.

        Raises ValueError where they hold something else than names of classes.
        """
        inner = values.get("text_config")
        levels = [values, *([inner] if isinstance(inner, Mapping) else [])]
        named, classes = values.get("architectures") or [], values.get("auto_map") or {}
        if not isinstance(named, list | tuple) or not all(isinstance(n, str) for n in named):
            raise ValueError(
                f"config.json says architectures={named!r}, which is no list of class names; take "
                'the line out, or name the class, as in ["LlamaForCausalLM"]'
            )
        if not isinstance(classes, Mapping):
            raise ValueError(
                f"config.json says auto_map={classes!r}, which is no table of classes; take the "
                "line out"
            )
        model_type = values.get("model_type") or ""
        if not isinstance(model_type, str):
            raise ValueError(
                f"config.json says model_type={model_type!r}, which is no name; write that of the "
                'family, as in "llama"'
            )
        code = classes.get(CAUSAL)
        return cls(
            model_type=model_type,
            named=tuple(named),
            encoder_decoder=any(level.get("is_encoder_decoder") is True for level in levels),
            code=code if isinstance(code, str) else None,
        )

    def auto_class(self, tables: Tables) -> str | None:
        """CAUSAL or IMAGE_TEXT; None where transformers has no class of its own for it."""
        choices = {CAUSAL: tables.causal, IMAGE_TEXT: tables.image_text}
        classes = {auto: _of(names, self.model_type) for auto, names in choices.items()}
        for name in self.named:
            for auto, of_type in classes.items():
                if name in of_type:
                    return auto if not self.encoder_decoder or auto == CAUSAL else None
        if self.encoder_decoder:
            return None
        return next((auto for auto, of_type in classes.items() if of_type), None)

    def check(self, path: str, tables: Tables, *, trust_remote_code: bool) -> None:
        """Raise ValueError where no class is there, or the one there is only with foreign code."""
        if self.auto_class(tables) is not None or (self.code and trust_remote_code):
            return
        if self.code:
            raise ValueError(
                f"model {path} is loaded by Python code of its own ({self.code}), which would run "
                "on this machine; read it, and set model.trust_remote_code=true if you trust it"
            )
        named = ", ".join(self.named) or f"model type {self.model_type}"
        if self.encoder_decoder:
            raise ValueError(
                f"model {path} ({named}) is an encoder-decoder; blocks are pruned one after the "
                "other in a decoder alone, so give a causal LM"
            )
        if self.model_type in tables.types:
            raise ValueError(
                f"model {path} ({named}) is no causal language model, and transformers has none of "
                f"type {self.model_type}; give one that predicts the next token"
            )


def _of(names: ClassNames, model_type: str) -> tuple[str, ...]:
    classes = names.get(model_type, ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


def inside_transformers(*parts: str) -> Path:
    """A place in the installed transformers, which is not imported; nothing need be there."""
    package = find_spec("transformers")
    places = package.submodule_search_locations if package is not None else None
    return Path(places[0] if places else "absent", *parts)


@cache
def renames_tensors(model_type: str) -> bool:
    """Whether the installed transformers gives tensors of this type other names as it loads them.

    Read as text; True where its file does not lie where releases 5.23 and later have it.
    """
    file = inside_transformers("conversion_mapping.py")
    # in a table, or set by itself: `mapping["kimi_linear"] = `, `mapping["legacy"] += `
    entry = rf'"{re.escape(model_type)}"(?::|\] \+?= )'
    return not file.is_file() or re.search(entry, file.read_text(encoding="utf-8")) is not None


@cache
def installed_tables() -> Tables | None:
    """The tables of the installed transformers, read as text, since its import takes seconds.

    None where they do not lie where releases 5.23 and later have them: then only loading tells.
    """
    folder = inside_transformers("models", "auto")
    tables = dict(_literals(folder / "auto_mappings.py")) | dict(
        _literals(folder / "modeling_auto.py")
    )
    try:
        return Tables(
            frozenset(tables["CONFIG_MAPPING_NAMES"]),
            tables["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"],
            tables["MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"],
        )
    except KeyError:
        return None


def _literals(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The top-level `NAME = OrderedDict([...])` of a file."""
    if not file.is_file():
        return
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        target, arguments = node.targets[0], node.value.args
        if isinstance(target, ast.Name) and target.id.endswith("_MAPPING_NAMES") and arguments:
            try:
                yield target.id, dict(ast.literal_eval(arguments[0]))
            except ValueError:  # no literal
                continue
