"""Keep what transformers reports of a checkpoint, for where it cannot be loaded.

Its converter, which puts the tensors of a file together to those of a class, collects errors, logs
them in a table, and then raises a sentence that points to the table.  Here the first error is the
message, and the table goes into run.log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

REPORTER = "transformers.modeling_utils"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PADDING = re.compile(r" {8,}|-{24,}")  # a table is as wide as the longest traceback in it
ENTRY = re.compile(r"^(?P<tensor>\S+) *\| CONVERSION \|(?P<text>.*?)^Error", re.M | re.S)

log = logging.getLogger(__name__)


class Collector(logging.Handler):
    """Keeps the text of every record."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def keep_report(path: str) -> Iterator[None]:
    """Word an error of the converter inside by the first tensor, and log its whole report.

    Raises ValueError in place of that error; any other passes.
    """
    logger, collector = logging.getLogger(REPORTER), Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    # below what `quieten` lets through; from WARNING on it warns of plans for many devices
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except Exception as error:
        text = PADDING.sub(" ", COLOUR.sub("", "\n".join(collector.texts)))
        entries = list(ENTRY.finditer(text))
        if not entries:
            raise
        log_in_files(f"{path} was not loaded:\n{text}")
        first = entries[0]
        cause = [line.strip() for line in first["text"].splitlines() if line.strip()][-1]
        raise ValueError(
            f"model {path} cannot be loaded: {first['tensor']} cannot be made of the tensors in "
            f"its files: {cause} ({len(entries)} tensors in all, each with its error in run.log); "
            "give the config.json and the weights of one model"
        ) from error
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def log_in_files(text: str) -> None:
    """Log a text of many lines in the files that a run logs to, and nowhere else."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
