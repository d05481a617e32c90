"""The start of a run: load the tokenizer, the token windows it reads, the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.find import check_prunable
from sparsemend.prune import check_widths
from sparsemend.run.adopt import check_existing
from sparsemend.run.digests import section
from sparsemend.run.parts import Parts
from sparsemend.run.shared import SharedWork
from sparsemend.run.windows import Wanted, Windows, check_vocabulary, read_windows
from sparsemend.sparse.pattern import Pattern


@dataclass(frozen=True)
class LoadStage:
    """Reads and checks the inputs of a run: an error appears before anything is measured."""

    cfg: DictConfig
    parts: Parts
    pattern: Pattern
    shared: SharedWork
    device: torch.device

    def windows(self) -> tuple[PreTrainedTokenizerBase | None, Windows]:
        """Return tokenizer and windows, those of this process's last job where they are equal."""
        parts, cfg, wanted = self.parts, self.cfg, self._needs()

        def read() -> tuple[PreTrainedTokenizerBase | None, Windows]:
            tokenizer = parts.model.tokenizer()
            return tokenizer, read_windows(parts.data, tokenizer, wanted, seed=cfg.seed)

        source = {"model": section(cfg, "model"), "data": section(cfg, "data"), "seed": cfg.seed}
        tokenizer, windows = self.shared.remember("windows", {**source, **asdict(wanted)}, read)
        if wanted.train:
            parts.method.check_train(windows.train)
        return tokenizer, windows

    def _needs(self) -> Wanted:
        parts, again = self.parts, self.cfg.from_run is not None
        trained = parts.method.trains and not again
        measured = any(e.needs_validation for e in parts.evaluation.values())
        readers = (parts.pruner, parts.sparsity_schedule, parts.method)
        return Wanted(
            train=trained,
            validation=trained or measured,
            calibration=any(part.needs_calibration for part in readers) and not again,
        )

    def protocol(self, test: Tensor) -> dict[str, Any]:
        """The facts beside the model that this run's numbers depend on.  test: windows (N, T)."""
        data = self.parts.data
        return {
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

    def model(
        self, windows: Windows, supports: Callable[[], Mapping[str, Tensor] | None]
    ) -> PreTrainedModel:
        """Load, check and place the model.  supports: reads those of a pruned checkpoint."""
        model = self.shared.model(lambda: self.parts.model.load(seed=self.cfg.seed))
        check_prunable(model)
        if self.cfg.from_run is None:  # a finished run is neither pruned nor repaired
            self._check_work(model, supports())
        labelled = [windows.train, windows.validation, *([windows.task] if windows.task else [])]
        vocabulary = model.config.get_text_config().vocab_size
        for tokens in (windows.test, windows.calibration, *(e.tokens for e in labelled)):
            check_vocabulary(tokens, vocabulary)
        if not self.parts.hardware.offload:
            nn.Module.to(model, self.device)
        return model

    def _check_work(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        """Raise an error where pruner or method cannot do what is asked with this model."""
        pruner = self.parts.pruner
        if pruner.reads_support:
            check_existing(model, supports, self.pattern)
        elif pruner.prunes:
            check_widths(model, self.pattern, tail=self.cfg.pattern_tail)
        self.parts.method.check_model(model, supports)
