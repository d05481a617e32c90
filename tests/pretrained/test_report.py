"""What is said and logged of tensors that transformers cannot put together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import Tensors, changed
from support.layouts import layout_model

from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.report import REPORTER, keep_report


@pytest.fixture
def run_log(tmp_path: Path) -> Iterator[Path]:
    """The file that a run logs to."""
    handler = logging.FileHandler(tmp_path / "run.log", delay=True)
    logging.getLogger().addHandler(handler)
    yield tmp_path / "run.log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_tensor_that_cannot_be_made_is_named_and_the_rest_is_in_the_log(
    run_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One expert of the first block has a row less than the others of its stack."""

    def cut(tensors: Tensors) -> Tensors:
        name = next(name for name in tensors if "0.block_sparse_moe.experts.0.w1" in name)
        return tensors | {name: tensors[name][:-1].clone()}

    layout_model("mixtral").save_pretrained(tmp_path / "whole")
    folder = changed(tmp_path / "cut", tmp_path / "whole", tensors=cut)
    capsys.readouterr()
    checkpoint = Checkpoint(path=str(folder), revision=None, trust_remote_code=False)
    message = r"model\.layers\.0\.mlp\.experts\.gate_up_proj cannot be made of .*equal size.*1 tens"
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load(dtype=torch.float32, attention=None)
    assert "\n" not in str(caught.value)
    logged = run_log.read_text()
    assert "Traceback (most recent call last)" in logged
    assert "Ckpt contains" in logged
    assert "Traceback" not in capsys.readouterr().err


def test_another_error_passes_and_the_loggers_are_as_before() -> None:
    logger = logging.getLogger(REPORTER)
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(KeyError), keep_report("x"):
        raise KeyError("y")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
