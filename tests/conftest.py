"""Offline settings, `families` and `oracles` on the import path, and shared fixtures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from families import random_model
from transformers import PreTrainedModel


@pytest.fixture
def tokens() -> torch.Tensor:
    """Eight windows of 24 random tokens."""
    return torch.randint(3, 96, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return random_model
