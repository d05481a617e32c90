"""Folders of tiny random models of any family, saved as a hub would hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from support.tiny_configs import VOCABULARY, WORDS, tiny_config
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

# the first that has the family makes its model; a family that reads images is saved with its tower
KINDS = (AutoModelForImageTextToText, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModel)
WINDOW = 24  # tokens


def tiny_model(model_type: str, *, seed: int = 0) -> PreTrainedModel:
    """A random model, fp32, eval mode, none of whose weights is 0 or 1 throughout.

    Raises ValueError where transformers has no such family.
    """
    config = tiny_config(model_type)
    kind = next(kind for kind in KINDS if type(config) in kind._model_mapping)
    torch.manual_seed(seed)
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() > 0:
                parameter.mul_(4)  # as made, near zero, every logit is alike
            elif parameter.ndim > 1:  # xLSTM begins with zeros
                parameter.normal_(std=0.1)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert sum(p.numel() for p in model.parameters()) < 8e6, f"{model_type} is not tiny"
    return model.eval()


def save_tiny(model_type: str, folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Write a tiny model of a family to `folder`; returns the model as it was made."""
    model = tiny_model(model_type, seed=seed)
    model.save_pretrained(folder)
    return model


def words(windows: int, *, seed: int = 1) -> Tensor:
    """Windows (N, WINDOW) of random tokens of text, none of an image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS.start, WORDS.stop, (windows, WINDOW), generator=generator)


assert WORDS.stop < VOCABULARY
