"""A tokenizer of single bytes, and a cache of `datasets` that each test starts empty."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sparsemend.model import train_tokenizer


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per ASCII character: 256 bytes and the special token leave no room for merges."""
    return train_tokenizer(["x"], 257)


@pytest.fixture
def bos_tokenizer(byte_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with a BOS token in front of every text."""
    byte_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", byte_tokenizer.bos_token_id)],
    )
    return byte_tokenizer


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where `datasets` keeps what it reads during this test."""
    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
