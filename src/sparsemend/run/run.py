"""One run, top to bottom: load, measure, prune, measure, repair, measure, export, report.

The only place that instantiates configured objects.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.checkpoint.card import model_card
from sparsemend.config.values import plain
from sparsemend.cost import Stages
from sparsemend.method.base import Workbench
from sparsemend.model import DTYPES
from sparsemend.result.finished import (
    FinishedRun,
    check_apart,
    command_line,
    finished_run,
    resolve_from_run,
)
from sparsemend.result.record import Result, objective
from sparsemend.result.resume import cell_folder, forget_work, last_checkpoint, run_folder
from sparsemend.result.summary import curves_of
from sparsemend.result.window_losses import repeat_losses
from sparsemend.run.again import load_repaired
from sparsemend.run.evaluate import EvaluationStage
from sparsemend.run.export import cast_, export, to_dense_
from sparsemend.run.load import LoadStage
from sparsemend.run.parts import Parts
from sparsemend.run.prune import PruneStage
from sparsemend.run.quiet import quieten
from sparsemend.run.shared import SharedWork
from sparsemend.run.table import rates_chart, summary_table
from sparsemend.run.windows import Windows
from sparsemend.sparse.count import (
    asked_per_block,
    effective_sparsity,
    sparsity_report,
    sparsity_section,
)
from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.sparse.mask_file import save_masks
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Carry out one configured run; returns its objective, the repaired model's perplexity."""
    quieten()
    cfg = resolve_from_run(cfg)
    started, worked = perf_counter(), process_time()
    fresh = Path(HydraConfig.get().runtime.output_dir)
    check_apart(cfg, fresh)
    sweep, config = HydraConfig.get().mode == RunMode.MULTIRUN, plain(cfg)
    out, resumed = cell_folder(config, fresh) if sweep else run_folder(cfg.resume, config, fresh)
    if not resumed:
        forget_work(out)
    result = Result(out / "result.json", cfg, resumed=resumed)
    result.write()
    try:
        parts = _parts(cfg)
        parts.check()
        Run(cfg, parts, result, out, last_checkpoint(out)).carry_out()
        result.content["seconds"] = round(perf_counter() - started, 3)
        result.content["processor_seconds"] = round(process_time() - worked, 3)
        result.write()
    except BaseException as error:
        result.fail(error)
        raise
    return objective(result.content, config)


def _parts(cfg: DictConfig) -> Parts:
    # A user's own method or pruner may live in any module, so no list of targets is imposed.
    built = {
        group: instantiate(
            cfg[group], _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
        )
        for group in Parts.__dataclass_fields__
    }
    return Parts(**built)


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
        self.shared = SharedWork(cfg, out, self.device)
        self.load = LoadStage(cfg, parts, self.pattern, self.shared, self.device)
        self.prune = PruneStage(
            cfg=cfg,
            pruner=parts.pruner,
            schedule=parts.sparsity_schedule,
            pattern=self.pattern,
            shared=self.shared,
            device=self.device,
            offload=parts.hardware.offload,
        )
        self.evaluate = EvaluationStage(
            parts=parts,
            shared=self.shared,
            result=result,
            stages=self.stages,
            device=self.device,
            out=out,
            seed=cfg.seed,
        )
        self.loggers = parts.logger.open(out, result.content["config"])

    def carry_out(self) -> None:
        """Run every stage in order; what was measured is on disk even when a stage fails."""
        try:
            self._carry_out()
        except BaseException as error:
            self.result.fail(error)
            self.parts.logger.abandon(self.loggers, self.result.content)
            raise
        finally:
            self.result.costs(self.stages)

    def _carry_out(self) -> None:
        if self.cfg.from_run is not None:
            self._again(finished_run(self.cfg.from_run))
            return
        tokenizer, windows, model = self._load()
        self.evaluate("dense", model, tokenizer, windows)
        with self.stages.measure("prune"):
            calibration = windows.calibration.split(self.parts.hardware.walk_batch)
            allocation = self.prune(model, calibration)
        self._show_rates(model, allocation)
        self.evaluate("pruned", model, tokenizer, windows)
        with self.stages.measure("repair"):
            bench = self._workbench(windows, calibration, allocation)
            diagnostics = self.parts.method.repair(model, bench)
            check_supports(model)
        self.result.costs(self.stages)
        if self.parts.method.reallocates:
            allocation = diagnostics.pop("asked")
            self._show_rates(model, allocation)
        self._record_repair(diagnostics)
        if not self.parts.method.repairs:
            self.result.content["metrics"]["repaired"] = self.result.content["metrics"]["pruned"]
            repeat_losses(self.out, "pruned", "repaired")
        else:
            self.evaluate("repaired", model, tokenizer, windows)
        with self.stages.measure("export"):
            self._export(model, tokenizer, allocation)
        self._finish()

    def _load(self) -> tuple[PreTrainedTokenizerBase | None, Windows, PreTrainedModel]:
        with self.stages.measure("load"):
            tokenizer, windows = self.load.windows()
            self._record_protocol(windows.test)
            return tokenizer, windows, self.load.model(windows, self.prune.given_supports)

    def _record_protocol(self, test: Tensor) -> None:
        protocol, content = self.load.protocol(test), self.result.content
        earlier = content["protocol"].get("data_hash", protocol["data_hash"])  # of a resumed run
        if earlier != protocol["data_hash"]:
            raise ValueError(
                f"the data of this configuration have changed since {self.out} was interrupted; "
                "bring back what it read, or drop resume to start afresh"
            )
        content["protocol"] = protocol

    def _again(self, finished: FinishedRun) -> None:
        """Measure and export a finished run, with neither pruning nor repair."""
        tokenizer, windows, model = self._load()
        self.evaluate("dense", model, tokenizer, windows)
        with self.stages.measure("load"):
            del model
            model = load_repaired(finished, self.parts.method, self.cfg.model.get("attention"))
        self.evaluate("repaired", model, tokenizer, windows)
        finished.carry_over(self.result.content)
        with self.stages.measure("export"):
            self.result.content["sparsity"] = dict(finished.content["sparsity"])
            self._export(model, tokenizer, finished.asked_sparsity())
        self._finish()

    def _show_rates(self, model: PreTrainedModel, asked: Mapping[str, float]) -> None:
        """Store the sparsity asked of each block, and chart it where blocks differ."""
        rates = asked_per_block(model, asked)
        scores = dict(asked.scores) if isinstance(asked, Allocation) else {}
        self.result.content["sparsity"] = {"asked_per_block": rates, "scores": scores}
        if max(rates.values()) - min(rates.values()) > 1e-3:  # more than rounding to whole weights
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
            load_dense=partial(parts.model.load, seed=self.cfg.seed),
            make_trainer=parts.hardware.trainer_factory(self.loggers, self.out),
            device=self.device,
            offload=parts.hardware.offload,
            out=self.out,
            seed=self.cfg.seed,
            rounding=self.cfg.rounding,
            resume_from=self.checkpoint,
        )

    def _record_repair(self, diagnostics: dict[str, Any]) -> None:
        self.result.content["repair"] = {"foldable": self.parts.method.foldable, **diagnostics}
        self.result.content["curves"] = curves_of(self.out)
        trained = diagnostics.get("trained_parameters", 0)
        self.result.content["cost"].setdefault("repair", {})["trained_parameters"] = trained

    def _export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        allocation: Mapping[str, float],
    ) -> None:
        masks, exported = self.out / "masks.safetensors", self.out / "model"
        base = str(exported if self.cfg.export else self.cfg.model.get("path"))
        self.parts.method.save_adapter(model, self.out / "adapter", base=base)
        if self.cfg.export and self.cfg.export_dtype is not None:
            cast_(model, DTYPES[self.cfg.export_dtype])  # first: its zeros are counted
        save_masks({name: linear.keep for name, linear in sparse_linears(model)}, masks)
        report, existing = sparsity_report(model), self.parts.pruner.reads_support
        self.result.content["sparsity"] |= sparsity_section(
            report,
            allocation,
            target=report.of_prunable if existing else self.cfg.sparsity,
            pattern=str(self.pattern),
            effective=effective_sparsity(model),
        )
        if self.cfg.export:
            card = model_card(self.result.content, _command(self.cfg.from_run))
            export(to_dense_(model), tokenizer, exported, masks=masks, card=card)

    def _finish(self) -> None:
        content = self.result.content
        content["status"] = "finished"
        self.result.costs(self.stages)
        try:
            self.parts.logger.finish(self.loggers, content)
        except Exception:  # result.json is the truth, and it is written
            log.exception("the tracker could not be brought to its end")
        console = _console()
        console.print(summary_table(content))
        console.print(f"result: {self.result.path}", soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=100)  # a log file has no width


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _command(from_run: str | None) -> str:
    """The command line that made the model: this job's own, in a sweep too, or a finished run's."""
    if from_run is not None and (command := finished_run(from_run).command) is not None:
        return command
    return command_line(HydraConfig.get().overrides.task)
