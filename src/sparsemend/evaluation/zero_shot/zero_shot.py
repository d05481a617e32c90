"""Multiple-choice and other tasks of the lm-evaluation-harness, on the model as it is in memory.

The stock harness scores the live model, adapters that stay open included; nothing of it is
rewritten here.  The figure of a task is its accuracy by summed log-likelihood (`acc`), which the
pruning papers report for every task, or by log-likelihood per byte where a task has it
(`acc_norm`).  The harness's own output is kept whole in zero_shot/<state>.json.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.residency import streams
from sparsemend.data.bos import needs_bos
from sparsemend.data.by_content import content_decides
from sparsemend.data.chat_template import check_renders
from sparsemend.errors import blame
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.evaluation.zero_shot.task_names import folders_of
from sparsemend.files import write_json
from sparsemend.names import HARNESS, MEAN, STATES
from sparsemend.result.protocol import solved_examples
from sparsemend.terminal import BarLines

log = logging.getLogger(__name__)

METRICS = ("acc", "acc_norm")
WORDS = "word_perplexity,none"  # what a task reports that reads a text and asks nothing
REMEDY = "look at the task's yaml and its data, at include_path and max_length, or leave it out"


@dataclass(kw_only=True)
class ZeroShot(Evaluation):
    """`zero_shot/<task>`, their mean, and every number of each as `zero_shot/<task>/<metric>`.

    `zero_shot/mean/<metric>` is the mean in acc and in acc_norm, the latter where a task has it.
    A task that reads a text, as wikitext, has no accuracy and no part in the mean:
    `zero_shot/wikitext/word_perplexity`.
    """

    streams: ClassVar[bool] = True

    suite: str
    tasks: Mapping[str, int] | Sequence[str] | str | None
    suites: Mapping[str, Mapping[str, int]]
    metric: str
    limit: int | None
    add_bos_token: bool | str
    chat_template: bool
    max_length: int
    batch: int | str | None
    include_path: str | None
    keep_samples: bool
    seeds: Sequence[int]
    states: Sequence[str]

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"evaluation.zero_shot.metric {self.metric!r} is not one of: {', '.join(METRICS)}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"evaluation.zero_shot.limit {self.limit} is below 1; null is no limit"
            )
        if unknown := sorted(set(self.states) - set(STATES)):
            raise ValueError(
                f"evaluation.zero_shot.states holds {', '.join(unknown)}, which is not one of: "
                f"{', '.join(STATES)}"
            )
        self._versions: dict[str, Any] = {}
        self._bos = self.add_bos_token is True

    @property
    def chosen(self) -> Mapping[str, int]:
        """Task -> number of solved examples that precede each of its items."""
        return self.suites[self.suite] if self.tasks is None else solved_examples(self.tasks)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError without a tokenizer, or the chat template that is asked for."""
        if tokenizer is None:
            raise ValueError(
                "evaluation=zero_shot reads text and the model folder has no tokenizer; put one "
                "there, or leave zero_shot out"
            )
        if self.chat_template:
            solved = any(self.chosen.values())
            check_renders("evaluation.zero_shot.chat_template", tokenizer, solved=solved)

    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        if inputs.state not in self.states:
            return {}
        self.check_tokenizer(inputs.tokenizer)
        if self.limit is not None:
            log.warning("zero_shot: only the first %d items of every task", self.limit)
        if self.add_bos_token == "auto":
            self._bos = needs_bos(model.config.model_type)
        raw = self._harness(model, inputs)
        write_json(inputs.out / HARNESS / f"{inputs.state}.json", _plain(raw))
        results: dict[str, Any] = {}
        for part in raw:
            results |= part["results"]
            self._versions |= part["versions"]
        asked = [task for task in self.chosen if WORDS not in results[task]]
        metrics = {f"{HARNESS}/{task}": figure(results[task], self.metric) for task in asked}
        if asked:
            metrics[MEAN] = fmean(metrics.values())
            for metric in METRICS:
                metrics[f"{MEAN}/{metric}"] = fmean(figure(results[t], metric) for t in asked)
        for task in self.chosen:
            metrics |= {f"{HARNESS}/{task}/{k}": v for k, v in numbers(results[task]).items()}
        return metrics

    def describe(self) -> dict[str, Any]:
        """The settings that make these numbers comparable; versions are known once measured."""
        return {
            "harness": f"lm-eval {metadata.version('lm-eval')}",
            "tasks": dict(self.chosen),
            "task_versions": self._versions,
            "metric": self.metric,
            "limit": self.limit,
            "add_bos_token": self._bos,
            "chat_template": self.chat_template,
            "max_length": self.max_length,
            "softmax_dtype": "float32",
        }

    def _harness(self, model: PreTrainedModel, inputs: EvaluationInput) -> list[dict[str, Any]]:
        """The harness's results, one for each number of solved examples."""
        tasks = f"evaluation.zero_shot.tasks={', '.join(self.chosen)}"
        with (
            blame(tasks, REMEDY),
            harness_quiet(),
            randomness_restored(inputs.device),
            content_decides(),
        ):
            from lm_eval import simple_evaluate
            from lm_eval.tasks import TaskManager

            folders = folders_of(self.chosen, self.include_path)
            manager = TaskManager(include_path=sorted(folders), include_defaults=False)
            adapter = self._adapter(model, inputs)
            seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
            return [
                simple_evaluate(
                    adapter,
                    tasks=[task for task, count in self.chosen.items() if count == shots],
                    num_fewshot=shots,
                    limit=self.limit,
                    apply_chat_template=self.chat_template,
                    fewshot_as_multiturn=self.chat_template,
                    log_samples=self.keep_samples,
                    task_manager=manager,
                    **dict(zip(seeds, self.seeds, strict=True)),
                )
                for shots in sorted(set(self.chosen.values()))
            ]

    def _adapter(self, model: PreTrainedModel, inputs: EvaluationInput) -> Any:
        """The harness's view of the model."""
        from lm_eval.models.huggingface import HFLM

        from sparsemend.evaluation.zero_shot.walked import WalkedLM

        settings: dict[str, Any] = {
            "tokenizer": copy.deepcopy(inputs.tokenizer),  # it sets a padding token
            "batch_size": inputs.batch_size if self.batch is None else self.batch,
            "max_length": self.max_length,
            "add_bos_token": self._bos,
            # of a bf16 model too: sums of bf16 log-probabilities have steps of 0.5 at -100
            "softmax_dtype": torch.float32,
        }
        if streams(model):
            return WalkedLM(model, inputs, **settings)
        return HFLM(pretrained=model, **settings)


def figure(result: Mapping[str, Any], metric: str) -> float:
    """The one number of a task: `metric`, acc where it has none, or a strict exact match."""
    for key in (f"{metric},none", "acc,none", "exact_match,strict-match", "exact_match,none"):
        if key in result:
            return float(result[key])
    raise ValueError(
        f"task {result.get('alias')} reports {', '.join(numbers(result))}: neither accuracy nor "
        "exact match; choose other tasks"
    )


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a task by metric; METRIC@FILTER where its answers were filtered."""
    named = ((key.split(","), value) for key, value in result.items() if "," in key)
    return {
        key if kind == "none" else f"{key}@{kind}": float(value)
        for (key, kind), value in named
        if isinstance(value, int | float)
    }


@contextmanager
def harness_quiet() -> Iterator[None]:
    """Let the harness log errors only, with its progress bars on a terminal and lines elsewhere."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(BarLines(HARNESS)):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def randomness_restored(device: torch.device) -> Iterator[None]:
    """Restore the state of all random generators afterwards: the harness seeds every one.

    device: the only GPU, if it is one, that this process uses; to ask the others would start them.
    """
    devices = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _plain(value: Any) -> Any:
    """`value` in JSON's types; all else that the harness returns (functions, dtypes) as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
