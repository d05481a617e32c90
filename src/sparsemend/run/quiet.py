"""Keep libraries' chatter out of a run's own lines."""

from __future__ import annotations

import logging
import os
import warnings

import torch
from transformers.utils import logging as transformers_logging

CHATTER = (  # warnings of Lightning about choices that are deliberate here
    "in eval mode at the start",
    "isinstance.treespec",
    "does not have many workers",
    "Checkpoint directory .* exists",
    "Experiment logs directory .* exists",
    "`broadcast_buffers` is deprecated",  # its successor is not in every torch we accept
    "It is recommended to use `self.log.* in distributed setting",  # they are the same on all ranks
    "Detected call of .lr_scheduler.step",  # an fp16 step overflowed, and its scaler left it out
    "Sparse CSR tensor support is in beta",  # of sparse deltas, whose tests compare it
    "You.re resuming from a checkpoint that ended before the epoch ended",
)


def quieten() -> None:
    """Silence the loggers and warnings of libraries; products in full precision."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # `Generating train split`
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning",
        "httpx",
        "datasets",
        "wandb",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in CHATTER:
        warnings.filterwarnings("ignore", message=f".*{text}")
    torch.set_float32_matmul_precision("highest")
