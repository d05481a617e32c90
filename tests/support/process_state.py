"""What a command changes in its process, put back afterwards."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra.core.hydra_config import HydraConfig
from transformers.utils import logging as transformers_logging

# loggers that a command or a library it uses sets the level of
LOGGERS = (
    "",
    "sparsemend",
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "httpx",
    "datasets",
    "wandb",
    "lm_eval",
)


@contextmanager
def process_state() -> Iterator[None]:
    """Restores arguments, environment, loggers and torch's settings when the block ends."""
    arguments, environment = sys.argv, dict(os.environ)
    hook, leave = sys.excepthook, sys.exit  # W&B replaces both, for good
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    verbosity, job = transformers_logging.get_verbosity(), HydraConfig.instance().cfg
    try:
        yield
    finally:
        sys.argv, sys.excepthook, sys.exit = arguments, hook, leave
        os.environ.clear()
        os.environ.update(environment)
        for handler in [h for h in root.handlers if h not in handlers]:
            handler.close()
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        HydraConfig.instance().cfg = job  # of which ${hydra:...} is made
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
