"""One run, top to bottom: load, measure, prune, measure, repair, measure, export, report.

The only place that instantiates configured objects.
"""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sparsemend.blocks import check_prunable
from sparsemend.cache import Content
from sparsemend.data.base import DataSource
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.existing_support import check_existing
from sparsemend.export import export, to_dense_
from sparsemend.finished_run import FinishedRun, check_apart, configured, finished_run
from sparsemend.hardware import Hardware
from sparsemend.masks import check_supports, save_masks, sparse_linears
from sparsemend.method.base import RepairMethod, TrainedRepair, Workbench
from sparsemend.method.none import NoRepair
from sparsemend.model import DTYPES, ModelSource
from sparsemend.model_card import model_card
from sparsemend.pattern import Pattern
from sparsemend.prune import check_widths
from sparsemend.prune_stage import PruneStage
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.existing import Existing
from sparsemend.pruner.none import NoPruner
from sparsemend.repaired_model import load_repaired
from sparsemend.results import (
    Result,
    asked_per_block,
    effective_sparsity,
    resolved,
    sparsity_report,
    sparsity_section,
)
from sparsemend.resume import cell_folder, forget_work, last_checkpoint, run_folder
from sparsemend.run_summary import curves_of
from sparsemend.shared_work import SharedWork, section
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.stages import Stages
from sparsemend.summary import rates_chart, summary_table
from sparsemend.sweep import objective
from sparsemend.tracking import Tracker
from sparsemend.window_losses import repeat_losses, write_losses
from sparsemend.windows import Wanted, Windows, check_vocabulary, read_windows

log = logging.getLogger(__name__)

CHATTER = (  # warnings of Lightning about choices that are deliberate here
    "in eval mode at the start",
    "isinstance.treespec",
    "does not have many workers",
    "Checkpoint directory .* exists",
    "Experiment logs directory .* exists",
    "`broadcast_buffers` is deprecated",  # its successor is not in every torch we accept
    "It is recommended to use `self.log.* in distributed setting",  # they are the same on all ranks
    "Sparse CSR tensor support is in beta",  # of sparse deltas, whose tests compare it
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
    """Carry out one configured run; returns its objective, the repaired model's perplexity."""
    quieten()
    cfg = configured(cfg)
    started, worked = perf_counter(), process_time()
    fresh = Path(HydraConfig.get().runtime.output_dir)
    check_apart(cfg, fresh)
    sweep, config = HydraConfig.get().mode == RunMode.MULTIRUN, resolved(cfg)
    out, resumed = cell_folder(config, fresh) if sweep else run_folder(cfg.resume, config, fresh)
    if not resumed:
        forget_work(out)
    result = Result(out / "result.json", cfg, resumed=resumed)
    result.write()
    try:
        parts = _parts(cfg)
        _check_together(parts)
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
        self.prune = PruneStage(
            cfg=cfg,
            pruner=parts.pruner,
            schedule=parts.sparsity_schedule,
            pattern=self.pattern,
            shared=self.shared,
            device=self.device,
            offload=parts.hardware.offload,
        )
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
        if self.cfg.from_run is not None:
            self._again(finished_run(self.cfg.from_run))
            return
        with self.stages.measure("load"):
            tokenizer, windows = self._read()
            model = self._load(windows)
        self._evaluate("dense", model, tokenizer, windows)
        with self.stages.measure("prune"):
            calibration = windows.calibration.split(self.parts.hardware.walk_batch)
            allocation = self.prune(model, calibration)
        self._show_rates(model, allocation)
        self._evaluate("pruned", model, tokenizer, windows)
        with self.stages.measure("repair"):
            bench = self._workbench(windows, calibration, allocation)
            diagnostics = self.parts.method.repair(model, bench)
            check_supports(model)
        self.result.costs(self.stages)
        if self.parts.method.reallocates:
            allocation = diagnostics.pop("asked")
            self._show_rates(model, allocation)
        self._record_repair(diagnostics)
        if isinstance(self.parts.method, NoRepair):
            self.result.content["metrics"]["repaired"] = self.result.content["metrics"]["pruned"]
            repeat_losses(self.out, "pruned", "repaired")
        else:
            self._evaluate("repaired", model, tokenizer, windows)
        with self.stages.measure("export"):
            self._export(model, tokenizer, allocation)
        self._finish()

    def _again(self, finished: FinishedRun) -> None:
        """Measure and export a finished run, with neither pruning nor repair."""
        with self.stages.measure("load"):
            tokenizer, windows = self._read()
            model = self._load(windows)
        self._evaluate("dense", model, tokenizer, windows)
        with self.stages.measure("load"):
            del model
            model = load_repaired(finished, self.parts.method, self.cfg.model.get("attention"))
        self._evaluate("repaired", model, tokenizer, windows)
        finished.carry_over(self.result.content)
        with self.stages.measure("export"):
            self.result.content["sparsity"] = dict(finished.content["sparsity"])
            self._export(model, tokenizer, finished.asked())
        self._finish()

    def _read(self) -> tuple[PreTrainedTokenizerBase | None, Windows]:
        """Tokenizer and windows, those of this process's last job where they are the same."""
        parts, cfg, wanted = self.parts, self.cfg, self._wanted()

        def read() -> tuple[PreTrainedTokenizerBase | None, Windows]:
            tokenizer = parts.model.tokenizer()
            return tokenizer, read_windows(parts.data, tokenizer, wanted, seed=cfg.seed)

        of = {"model": section(cfg, "model"), "data": section(cfg, "data"), "seed": cfg.seed}
        tokenizer, windows = self.shared.remembered("windows", {**of, **asdict(wanted)}, read)
        if wanted.train:
            parts.method.check_train(windows.train)
        self._record_protocol(windows.test)
        return tokenizer, windows

    def _wanted(self) -> Wanted:
        parts, again = self.parts, self.cfg.from_run is not None
        trained = isinstance(parts.method, TrainedRepair) and not again
        measured = any(e.needs_validation for e in parts.evaluation.values())
        readers = (parts.pruner, parts.sparsity_schedule, parts.method)
        return Wanted(
            train=trained,
            validation=trained or measured,
            calibration=any(part.needs_calibration for part in readers) and not again,
        )

    def _record_protocol(self, test: Tensor) -> None:
        data = self.parts.data
        self.result.content["protocol"] = {
            "corpus": data.name,
            "split": "test",
            "tokens": test.numel(),
            "windows": test.shape[0],
            "seqlen": test.shape[1],
            "dtype": self.cfg.model.dtype,
            "data_hash": data.fingerprint(),
            "calibration_samples": data.calibration_samples,
            "statistics": self.cfg.statistics,
        }

    def _load(self, windows: Windows) -> PreTrainedModel:
        model = self.shared.model(lambda: self.parts.model.load(seed=self.cfg.seed))
        check_prunable(model)
        pruner = self.parts.pruner
        if not isinstance(pruner, Existing | NoPruner):
            check_widths(model, self.pattern, tail=self.cfg.pattern_tail)
        supports = self.prune.given_supports()
        if isinstance(pruner, Existing):
            check_existing(model, supports, self.pattern)
        self.parts.method.check_model(model, supports)
        labelled = [windows.train, windows.validation, *([windows.task] if windows.task else [])]
        vocabulary = model.config.get_text_config().vocab_size
        for tokens in (windows.test, windows.calibration, *(e.tokens for e in labelled)):
            check_vocabulary(tokens, vocabulary)
        if not self.parts.hardware.offload:
            nn.Module.to(model, self.device)
        return model

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
            validation=windows.validation,
            tokenizer=tokenizer,
            device=self.device,
            batch_size=self.parts.hardware.evaluation_batch,
            load_dense=partial(self.parts.model.load, seed=self.cfg.seed),
            out=self.out,
            state=state,
        )
        home = next(model.parameters()).device

        def on_device(evaluation: Evaluation) -> Content:
            asked = replace(given, window_losses={})
            nn.Module.to(model, self.device)
            found = evaluation(model, asked)
            nn.Module.to(model, home)
            return Content(found, asked.window_losses)

        metrics: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        with self.stages.measure("evaluate"):
            for name, evaluation in self.parts.evaluation.items():
                found = self.shared.measure(
                    state, name, evaluation, given, partial(on_device, evaluation)
                )
                metrics |= found.values
                losses |= found.tensors
                if described := evaluation.describe():
                    self.result.content["protocol"][name] = described
        self.result.content["metrics"][state] = metrics
        write_losses(self.out, state, losses)
        self.result.content["cache"] = self.shared.origins
        self.result.costs(self.stages)
        # numbers per block or per task are for result.json
        named = {k: v for k, v in metrics.items() if k.count("/") == 1 and not k[-1].isdigit()}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in named.items())
        log.info("%-8s  %s", state, shown)

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
            card = model_card(self.result.content, _command(self.cfg.from_run))
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
            f"{method} reads the dense weights, which an already pruned checkpoint "
            "(pruner=existing) does not have; give the dense model and a pruner"
        )


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=100)  # a log file has no width


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _command(from_run: str | None) -> str:
    """The command line that made the model: this job's own, in a sweep too, or a finished run's."""
    if from_run is not None and (command := finished_run(from_run).command) is not None:
        return command
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
