"""The start of a run: load the tokenizer, the token windows it reads, the dense model.

An error appears here, before anything is measured.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.file_states import forget_walks
from sparsemend.blocks.find import check_blocks
from sparsemend.blocks.residency import move_
from sparsemend.blocks.self_check import check_walk
from sparsemend.errors import blame
from sparsemend.names import BLOCKS, HIDDEN_STATES
from sparsemend.prune import check_widths
from sparsemend.run.adopt import check_existing
from sparsemend.run.debug import first_windows
from sparsemend.run.job import Loaded, RunJob
from sparsemend.run.keys import model_key
from sparsemend.run.prune import given_supports
from sparsemend.run.streamed import open_if_streamed
from sparsemend.run.windows import (
    Wanted,
    Windows,
    check_vocabulary,
    first_tested,
    first_window,
    read_windows,
)

log = logging.getLogger(__name__)


def load(job: RunJob) -> Loaded:
    """Read, check and place the inputs of a run, and record what its numbers depend on."""
    with job.stages.measure("load"):
        tokenizer, windows = _windows(job)
        for evaluation in job.parts.evaluation.values():
            evaluation.check_tokenizer(tokenizer)
        record_protocol(job, windows.test)
        model = load_model(job, windows)
        # whatever model.attention says, null too: what computes it decides the last bits
        job.result.content["protocol"]["attention"] = model.config._attn_implementation
        return Loaded(tokenizer, windows, model)


def _windows(job: RunJob) -> tuple[PreTrainedTokenizerBase | None, Windows]:
    """Tokenizer and windows, those of this process's last job where they are equal."""
    parts, wanted = job.parts, _needs(job)

    def read() -> tuple[PreTrainedTokenizerBase | None, Windows]:
        path = f"model.path={job.cfg.model.get('path')}"
        with blame(path, "its tokenizer cannot be read; give a folder with tokenizer.json"):
            tokenizer = parts.model.tokenizer()
        return tokenizer, read_windows(parts.data, tokenizer, wanted, seed=job.cfg.seed)

    tokenizer, windows = job.reuse.memory.once("windows", job.keys.windows(wanted), read)
    if job.cfg.get("debug") is not None:
        windows = first_windows(windows, job.cfg.debug.windows)
    # validation stays whole, a method that trains has its own number
    measured = parts.evaluation.values()
    tested = [e.first_windows for e in measured if e.first_windows is not None]
    of_task = [e.first_examples for e in measured if e.first_examples is not None]
    windows = first_tested(windows, min(tested, default=None), min(of_task, default=None))
    if wanted.train:
        parts.method.check_train(windows.train)
        parts.method.check_validation(windows.validation)
    return tokenizer, windows


def _needs(job: RunJob) -> Wanted:
    parts, again = job.parts, job.cfg.from_run is not None
    trained = parts.method.trains and not again
    measured = any(e.needs_validation for e in parts.evaluation.values())
    return Wanted(
        train=trained,
        validation=trained or measured,
        calibration=_calibrates(job) and not again,
    )


def _calibrates(job: RunJob) -> bool:
    """Whether calibration windows decide numbers of this run, or of the finished one it reads."""
    parts = job.parts
    readers = (parts.pruner, parts.sparsity_schedule, parts.method)
    return any(part.needs_calibration for part in readers)


def record_protocol(job: RunJob, test: Tensor) -> None:
    """Record the facts beside the model that this run's numbers depend on.

    test: windows (N, T).  Raises ValueError where a resumed run would read other data than before.
    """
    data, content = job.parts.data, job.result.content
    protocol: dict[str, Any] = {
        "corpus": data.name,
        "split": "test",
        "tokens": test.numel(),
        "windows": test.shape[0],
        "seqlen": test.shape[1],
        "dtype": job.cfg.model.dtype,
        "data_hash": data.data_hash(),
        "bos": False,
        "chat_template": False,
        **data.framing(),
        "calibration_samples": data.calibration_samples,
        "calibration_from": data.calibrates_on() if _calibrates(job) else "text",
        "statistics": job.cfg.statistics,
        "true_sequential": job.cfg.true_sequential,
    }
    if (stored_as := job.parts.model.stored_as()) is not None:
        protocol["stored_as"] = stored_as
    earlier = content["protocol"].get("data_hash", protocol["data_hash"])  # of a resumed run
    if earlier != protocol["data_hash"]:
        raise ValueError(
            f"the data of this configuration have changed since {job.out} was interrupted; "
            "bring back what it read, or drop resume to start afresh"
        )
    content["protocol"] = protocol


def load_model(job: RunJob, windows: Windows) -> PreTrainedModel:
    """Load the dense model, place it, and check it against what the run will do with it."""
    forget_walks(job.out / HIDDEN_STATES)
    model = _dense_model(job)
    check_blocks(model)
    labelled = [windows.train, windows.validation, *([windows.task] if windows.task else [])]
    vocabulary = model.config.get_text_config().vocab_size
    for tokens in (windows.test, windows.calibration, *(e.tokens for e in labelled)):
        check_vocabulary(tokens, vocabulary)
    if not job.parts.hardware.offload:
        move_(model, job.device)
    if job.cfg.from_run is None:  # a finished run is neither pruned nor repaired
        window = first_window(windows.calibration, windows.test)
        started = perf_counter()
        check_walk(model, window, device=job.device, offload=job.parts.hardware.offload)
        seconds = perf_counter() - started
        log.info("the model's blocks, visited one by one, give its forward (%.1f s)", seconds)
        _check_work(job, model, given_supports(job, model))
    return model


def _dense_model(job: RunJob) -> PreTrainedModel:
    """The dense model on the host, this job's own to change."""
    streamed = open_if_streamed(job.cfg, job.parts.model, job.out / BLOCKS)
    if streamed is not None:
        job.keys.dense = model_key(streamed) if job.reuse.on else ""
        return streamed

    def load_here() -> tuple[PreTrainedModel, str]:
        model = job.parts.model.load(seed=job.cfg.seed)
        return model, model_key(model) if job.reuse.on else ""

    model, job.keys.dense = job.reuse.memory.once("model", job.keys.model(), load_here)
    return copy.deepcopy(model) if job.reuse.memory.enabled else model


def _check_work(job: RunJob, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
    """Raise an error where pruner or method cannot do what is asked with this model."""
    pruner = job.parts.pruner
    if pruner.reads_support:
        check_existing(model, supports, job.pattern)
    elif pruner.prunes:
        check_widths(model, job.pattern, tail=job.cfg.pattern_tail)
    job.parts.method.check_model(model, supports)
