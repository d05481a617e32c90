"""One run, top to bottom: load, measure, prune, measure, repair, measure, export, report.

The only place that instantiates configured objects.
"""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sparsemend.blocks import check_prunable
from sparsemend.data.base import DataSource, Examples
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.evaluation.perplexity import METRIC
from sparsemend.export import export, model_card, to_dense_
from sparsemend.hardware import Hardware
from sparsemend.locations import resolve_path
from sparsemend.masks import check_supports, save_masks, sparse_linears
from sparsemend.method.base import RepairMethod, TrainedRepair, Workbench
from sparsemend.model import DTYPES, ModelSource
from sparsemend.pattern import Pattern
from sparsemend.prune import adopt, check_widths, prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.existing import Existing
from sparsemend.pruner.none import NoPruner
from sparsemend.results import (
    Result,
    asked_per_block,
    effective_sparsity,
    resolved,
    sparsity_report,
    sparsity_section,
)
from sparsemend.resume import forget_work, last_checkpoint, run_folder
from sparsemend.rounding import rounded
from sparsemend.run_summary import curves_of
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.stages import Stages
from sparsemend.summary import rates_chart, summary_table
from sparsemend.tracking import Tracker

log = logging.getLogger(__name__)

CHATTER = (  # warnings of Lightning about choices that are deliberate here
    "in eval mode at the start",
    "isinstance.treespec",
    "does not have many workers",
    "Checkpoint directory .* exists",
    "Experiment logs directory .* exists",
    "`broadcast_buffers` is deprecated",  # its successor is not in every torch we accept
    "It is recommended to use `self.log.* in distributed setting",  # they are the same on all ranks
    "You.re resuming from a checkpoint that ended before the epoch ended",
)


@dataclass(frozen=True)
class Parts:
    """The configured objects of one run."""

    model: ModelSource
    data: DataSource
    pruner: Pruner
    sparsity_schedule: SparsitySchedule
    method: RepairMethod
    hardware: Hardware
    evaluation: dict[str, Evaluation]
    logger: Tracker


def run(cfg: DictConfig) -> float:
    """Carry out one configured run; returns the repaired model's test perplexity."""
    quieten()
    fresh = Path(HydraConfig.get().runtime.output_dir)
    out, resumed = run_folder(cfg.resume, resolved(cfg), fresh)
    if not resumed:
        forget_work(out)
    result = Result(out / "result.json", cfg, resumed=resumed)
    result.write()
    try:
        parts = _parts(cfg)
        _check_together(parts)
        Run(cfg, parts, result, out, last_checkpoint(out)).carry_out()
    except BaseException as error:
        result.fail(error)
        raise
    return float(result.content["metrics"]["repaired"].get(METRIC) or "nan")


def _parts(cfg: DictConfig) -> Parts:
    # A user's own method or pruner may live in any module, so no list of targets is imposed.
    built = {
        group: instantiate(
            cfg[group], _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
        )
        for group in Parts.__dataclass_fields__
    }
    return Parts(**built)


@dataclass(frozen=True)
class Windows:
    """Token windows (N, T) of one run; empty where nothing will read them."""

    test: Tensor
    calibration: Tensor
    train: Examples
    validation: Examples
    task: Examples | None


class Run:
    """The stages of one run and what they hand on."""

    def __init__(
        self, cfg: DictConfig, parts: Parts, result: Result, out: Path, checkpoint: Path | None
    ) -> None:
        self.cfg, self.parts, self.result, self.out = cfg, parts, result, out
        self.checkpoint = checkpoint
        self.device = parts.hardware.prepare()
        self.stages = Stages(self.device)
        result.content["provenance"]["device"] = _device_name(self.device)
        result.content["provenance"]["threads"] = torch.get_num_threads()
        self.pattern = Pattern.parse(cfg.pattern)
        self.loggers = parts.logger.open(out, result.content["config"])

    def carry_out(self) -> None:
        """Every stage in order; what was measured is on disk also when one of them fails."""
        try:
            self._carry_out()
        except BaseException as error:
            self.result.fail(error)
            self.parts.logger.abandon(self.loggers, self.result.content)
            raise
        finally:
            self.result.costs(self.stages)

    def _carry_out(self) -> None:
        with self.stages.measure("load"):
            tokenizer = self.parts.model.tokenizer()
            windows = self._read_windows(tokenizer)
            model = self._load(windows)
        self._evaluate("dense", model, tokenizer, windows)
        with self.stages.measure("prune"):
            calibration = windows.calibration.split(self.parts.hardware.walk_batch)
            allocation = self._prune(model, calibration)
        self._show_rates(model, allocation)
        self._evaluate("pruned", model, tokenizer, windows)
        with self.stages.measure("repair"):
            bench = self._workbench(windows, calibration, allocation)
            diagnostics = self.parts.method.repair(model, bench)
            check_supports(model)
        self.result.costs(self.stages)
        allocation = diagnostics.pop("asked", allocation)
        self._record_repair(diagnostics)
        self._evaluate("repaired", model, tokenizer, windows)
        with self.stages.measure("export"):
            self._export(model, tokenizer, allocation)
        self._finish()

    def _read_windows(self, tokenizer: PreTrainedTokenizerBase | None) -> Windows:
        """Every window this run will need, before the model is loaded: bad data costs seconds."""
        data, method = self.parts.data, self.parts.method
        trained = isinstance(method, TrainedRepair)
        readers = (self.parts.pruner, self.parts.sparsity_schedule, method)
        calibrated = any(part.needs_calibration for part in readers)
        none = torch.empty(0, data.seqlen, dtype=torch.int64)
        untrained = Examples.of(none)
        windows = Windows(
            train=data.train(tokenizer) if trained else untrained,
            validation=data.validation(tokenizer) if trained else untrained,
            task=data.task(tokenizer),
            test=data.test(tokenizer),
            # last: a shard of C4 takes a minute to read
            calibration=data.calibration(tokenizer, seed=self.cfg.seed) if calibrated else none,
        )
        method.check_train(windows.train)
        test = windows.test
        self.result.content["protocol"] = {
            "corpus": data.name,
            "split": "test",
            "tokens": test.numel(),
            "windows": test.shape[0],
            "seqlen": test.shape[1],
            "dtype": self.cfg.model.dtype,
            "data_hash": data.fingerprint(),
            "calibration_samples": data.calibration_samples,
        }
        return windows

    def _load(self, windows: Windows) -> PreTrainedModel:
        model = self.parts.model.load(seed=self.cfg.seed)
        check_prunable(model)
        pruner = self.parts.pruner
        if not isinstance(pruner, Existing | NoPruner):
            check_widths(model, self.pattern, tail=self.cfg.pattern_tail)
        self.parts.method.check_model(model, self._given_supports())
        for examples in (windows.train, windows.validation, windows.task):
            if examples is not None:
                _check_vocabulary(model, examples.tokens)
        for tokens in (windows.test, windows.calibration):
            _check_vocabulary(model, tokens)
        if not self.parts.hardware.offload:
            nn.Module.to(model, self.device)
        return model

    def _given_supports(self) -> Mapping[str, Tensor] | None:
        """bool (O, I) per linear from the masks file of an already pruned checkpoint."""
        if not isinstance(self.parts.pruner, Existing):
            return None
        return self.parts.pruner.supports(resolve_path(self.cfg.model.path))

    def _evaluate(
        self,
        state: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        windows: Windows,
    ) -> None:
        given = EvaluationInput(
            test=windows.test,
            task=windows.task,
            tokenizer=tokenizer,
            device=self.device,
            batch_size=self.parts.hardware.evaluation_batch,
        )
        home = next(model.parameters()).device
        metrics: dict[str, float] = {}
        with self.stages.measure("evaluate"):
            nn.Module.to(model, self.device)
            for evaluation in self.parts.evaluation.values():
                metrics |= evaluation(model, given)
            nn.Module.to(model, home)
        self.result.content["metrics"][state] = metrics
        self.result.costs(self.stages)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("%-8s  %s", state, shown)

    def _prune(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> Mapping[str, float]:
        parts, cfg = self.parts, self.cfg
        if isinstance(parts.pruner, Existing):
            return adopt(model, parts.pruner.supports(resolve_path(cfg.model.path)))
        place: dict[str, Any] = {"device": self.device, "offload": parts.hardware.offload}
        schedule = parts.sparsity_schedule
        allocation = schedule.allocate(model, batches, cfg.sparsity, self.pattern, **place)
        pruner, allocation = rounded(cfg.rounding, parts.pruner, allocation)
        prune(model, batches, pruner, allocation, self.pattern, **place)
        return allocation

    def _show_rates(self, model: PreTrainedModel, asked: Mapping[str, float]) -> None:
        """Store what was asked of each block, and chart it where blocks differ."""
        rates = asked_per_block(model, asked)
        scores = dict(asked.scores) if isinstance(asked, Allocation) else {}
        self.result.content["sparsity"] = {"asked_per_block": rates, "scores": scores}
        if max(rates.values()) - min(rates.values()) > 1e-3:  # more than whole weights make
            _console().print(rates_chart(rates, scores, self.cfg.sparsity))

    def _workbench(
        self,
        windows: Windows,
        calibration: Sequence[Tensor],
        allocation: Mapping[str, float],
    ) -> Workbench:
        parts = self.parts
        return Workbench(
            calibration=calibration,
            train=windows.train,
            validation=windows.validation,
            pruner=parts.pruner,
            allocation=allocation,
            sparsity=self.cfg.sparsity,
            pattern=self.pattern,
            load_dense=lambda: parts.model.load(seed=self.cfg.seed),
            make_trainer=parts.hardware.trainer_factory(self.loggers, self.out),
            device=self.device,
            offload=parts.hardware.offload,
            out=self.out,
            seed=self.cfg.seed,
            resume_from=self.checkpoint,
        )

    def _record_repair(self, diagnostics: dict[str, Any]) -> None:
        self.result.content["repair"] = diagnostics
        self.result.content["curves"] = curves_of(self.out)
        trained = diagnostics.get("trained_parameters", 0)
        self.result.content["cost"].setdefault("repair", {})["trained_parameters"] = trained

    def _export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        allocation: Mapping[str, float],
    ) -> None:
        masks = self.out / "masks.safetensors"
        save_masks({name: linear.keep for name, linear in sparse_linears(model)}, masks)
        report, existing = sparsity_report(model), isinstance(self.parts.pruner, Existing)
        self.result.content["sparsity"] |= sparsity_section(
            report,
            allocation,
            target=report.of_prunable if existing else self.cfg.sparsity,
            pattern=str(self.pattern),
            effective=effective_sparsity(model),
        )
        exported = self.out / "model"
        base = str(exported if self.cfg.export else self.cfg.model.get("path"))
        self.parts.method.save_adapter(model, self.out / "adapter", base=base)
        if self.cfg.export:
            if self.cfg.export_dtype is not None:
                nn.Module.to(model, DTYPES[self.cfg.export_dtype])
            card = model_card(self.result.content, _command())
            export(to_dense_(model), tokenizer, exported, masks=masks, card=card)

    def _finish(self) -> None:
        content = self.result.content
        content["status"] = "finished"
        self.result.costs(self.stages)
        self.parts.logger.finish(self.loggers, content)
        console = _console()
        console.print(summary_table(content))
        console.print(f"result: {self.result.path}", soft_wrap=True)


def _check_together(parts: Parts) -> None:
    method = type(parts.method).__name__
    if parts.method.needs_dense and isinstance(parts.pruner, Existing):
        raise ValueError(
            f"{method} restarts from dense weights, which an already pruned checkpoint "
            "(pruner=existing) does not have; give the dense model and a pruner"
        )


def _check_vocabulary(model: PreTrainedModel, tokens: Tensor) -> None:
    if not tokens.numel():
        return
    size = model.config.get_text_config().vocab_size
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"token ids reach from {low} to {high}, outside the vocabulary [0, {size}); "
            "tokenise with this model's tokenizer"
        )


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=100)  # a log file has no width


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _command() -> str:
    """This job's own command line, also where it is one of a sweep's."""
    return shlex.join(["sparsemend", *HydraConfig.get().overrides.task])


def quieten() -> None:
    """Keep libraries' chatter out of the run's own lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
