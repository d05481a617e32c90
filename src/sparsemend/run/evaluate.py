"""Measure a model as it is now with every evaluation that was asked for, and record it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.finite import HOLDS, first_not_finite
from sparsemend.blocks.forwards import place_on
from sparsemend.blocks.states import StatesPlace
from sparsemend.config.values import digest
from sparsemend.evaluation.base import Evaluation, EvaluationInput, KeepNothing, Unfinished
from sparsemend.names import HIDDEN_STATES, METRIC, TASK_METRIC, VALIDATION_METRIC
from sparsemend.result.window_losses import write_losses
from sparsemend.run.cache import Content
from sparsemend.run.job import Loaded, RunJob
from sparsemend.run.keys import model_key
from sparsemend.run.streamed import dense_loader

log = logging.getLogger(__name__)


def evaluate(job: RunJob, state: str, loaded: Loaded) -> None:
    """Measure the loaded model in its state: dense, pruned or repaired."""
    inputs = _inputs(job, state, loaded)
    metrics: dict[str, float] = {}
    losses: dict[str, Tensor] = {}
    content = job.result.content
    with job.stages.measure("evaluate", state):
        key = _key_of(job, state, loaded.model)
        for name, evaluation in job.parts.evaluation.items():
            measurement = _once(job, state, name, evaluation, inputs, key, loaded.model)
            metrics |= measurement.values
            if state == "dense":
                check_finite(measurement.values, str(job.cfg.model.dtype), loaded.model)
            losses |= measurement.tensors
            if described := evaluation.describe():
                content["protocol"][name] = described
    content["metrics"][state] = metrics
    write_losses(job.out, state, losses)
    content["cache"] = job.reuse.origins
    job.result.costs(job.stages)
    # numbers per block or per task are for result.json
    named = {k: v for k, v in metrics.items() if k.count("/") == 1 and not k[-1].isdigit()}
    shown = "  ".join(f"{name} {value:.4f}" for name, value in named.items())
    log.info("%-8s  %s", state, shown)


def check_finite(measured: Mapping[str, float], dtype: str, model: PreTrainedModel) -> None:
    """Raise FloatingPointError where a perplexity of the dense model is no finite number.

    It names the first weight that is none.  That of a pruned or repaired model may be: a collapsed
    model is a result.
    """
    for name in (METRIC, TASK_METRIC, VALIDATION_METRIC):
        if math.isfinite(measured.get(name, 0.0)):
            continue
        remedy = {
            "float16": "its activations overflow; set model.dtype=bfloat16 (or float32)",
            "bfloat16": "set model.dtype=float32",
        }.get(dtype, "float32 overflows in no trained model, so look at its weights")
        if (weight := first_not_finite(model)) is not None:
            remedy = f"{weight} {HOLDS}"
        raise FloatingPointError(
            f"{name} of the dense model is {measured[name]} in model.dtype={dtype}, so that no "
            f"number of this run would mean anything: {remedy}"
        )


def _key_of(job: RunJob, state: str, model: PreTrainedModel) -> str:
    """What a measurement is about, as a hash; empty where it is not kept.

    A repaired model is this run's alone, kept for a later attempt of it.
    """
    if state == "repaired":
        kept = job.reuse.attempts is not None
        return digest([job.keys.dense, model_key(model)]) if kept else ""
    return {"dense": job.keys.dense, "pruned": job.keys.pruned}[state]


def _once(
    job: RunJob,
    state: str,
    name: str,
    evaluation: Evaluation,
    inputs: EvaluationInput,
    key: str,
    model: PreTrainedModel,
) -> Content:
    """The outcome of one evaluation: its values are metrics, its tensors losses by window.

    A repeatable evaluation measures equal models only once.
    """
    if not key or not type(evaluation).repeatable:
        return _measure(job, evaluation, model, inputs, KeepNothing())
    parts = job.keys.measuring(key, name, evaluation, inputs)
    unfinished = job.reuse.keeper_of(parts)
    compute = partial(_measure, job, evaluation, model, inputs, unfinished)
    if state == "repaired":
        content = job.reuse.again("metrics", parts, compute)
    else:
        once = partial(job.reuse.once, "metrics", parts, compute, origin=["metrics", state, name])
        memory = job.reuse.memory
        content = memory.once(f"dense {name}", parts, once) if state == "dense" else once()
    unfinished.forget()
    return content


def _measure(
    job: RunJob,
    evaluation: Evaluation,
    model: PreTrainedModel,
    inputs: EvaluationInput,
    unfinished: Unfinished,
) -> Content:
    """Measure on the device of this run, then put the model back where it lives."""
    fresh = replace(inputs, window_losses={}, unfinished=unfinished)
    with place_on(model, job.device):
        metrics = evaluation(model, fresh)
    return Content(metrics, fresh.window_losses)


def _inputs(job: RunJob, state: str, loaded: Loaded) -> EvaluationInput:
    hardware = job.parts.hardware
    return EvaluationInput(
        test=loaded.windows.test,
        task=loaded.windows.task,
        validation=loaded.windows.validation,
        tokenizer=loaded.tokenizer,
        device=job.device,
        batch_size=hardware.evaluation_batch,
        load_dense=dense_loader(job.parts.model, job.cfg.seed, loaded.model),
        out=job.out,
        state=state,
        states=StatesPlace(hardware.states, job.out / HIDDEN_STATES),
        states_bytes=hardware.evaluation_states,
    )
