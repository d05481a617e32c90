"""A setting small enough for seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsemend.bench.shape import Shape
from sparsemend.bench.suite.base import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    shape = Shape(
        hidden=32,
        intermediate=48,
        blocks=2,
        heads=4,
        key_value_heads=2,
        vocabulary=64,
        dtype="float32",
        tokens=[[2, 8]],
    )
    return Setting(
        shape=shape,
        sparsity=0.5,
        dtype=torch.float32,
        device=torch.device("cpu"),
        rounds=2,
        seed=0,
        out=tmp_path,
        search=[],
    )


@pytest.fixture
def half_precision(setting: Setting) -> Setting:
    return replace(setting, dtype=torch.bfloat16)
