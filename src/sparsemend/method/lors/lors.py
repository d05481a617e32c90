"""LoRS: low-rank adaptation of a sparse model at the cost of plain LoRA.

    W_eff = keep * (W + s B A),   s = alpha / sqrt(r)

The same function as masked LoRA: no weight-sized tensor is kept for the backward pass (the merged
weight is rebuilt).  Without masked LoRA's cost: no weight-sized gradient is formed (the rank-r
factor comes first).  See adapter/lors_function for the gradients, start for where A starts.

LoRS: Hu et al. 2025, arXiv 2501.08582; doi 10.26599/TST.2025.9010174.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import called_linears
from sparsemend.blocks.names import saved_name
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import FUSE_DTYPES, GRAD_MODES, LorsSettings
from sparsemend.method.adapter.low_rank import (
    SCALE_RULES,
    attach_adapters,
    check_adapter,
    check_ranks,
    factors,
    kaiming_start,
    scale_of,
)
from sparsemend.method.base import Workbench
from sparsemend.method.lors.start import GradientStart
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.plan import check_choice

LEAST = {
    "tile_rows": 1,
    "init_samples": 1,
    "init_batch_size": 1,
    "init_oversample": 1,
    "init_iterations": 0,
    "init_linears_per_pass": 1,  # or None
}


@dataclass(kw_only=True)
class Lors(TrainedRepair):
    """Trains A and B of every prunable linear from the gradient's singular vectors, then folds."""

    low_rank: ClassVar[bool] = True

    rank: int
    alpha: float
    scale_rule: str
    grad_mode: str
    tile_rows: int
    mask: str
    fuse_dtype: str
    init: str
    init_samples: int
    init_batch_size: int
    init_oversample: int
    init_iterations: int
    init_gamma: float
    init_masked: bool
    init_svd: str
    init_linears_per_pass: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, 0.0)
        check_choice("scale_rule", self.scale_rule, SCALE_RULES)
        check_choice("grad_mode", self.grad_mode, GRAD_MODES)
        check_choice("mask", self.mask, ("stored", "derived"))
        check_choice("fuse_dtype", self.fuse_dtype, FUSE_DTYPES)
        check_choice("init", self.init, ("grad_svd", "kaiming"))
        check_choice("init_svd", self.init_svd, ("randomized", "exact"))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"method.{name} {value} is below {least}")
        if self.init_gamma <= 0:
            raise ValueError(f"method.init_gamma {self.init_gamma} is not above 0")

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        check_ranks(model, self.rank)
        if self.mask == "derived" and supports is not None:
            for name, linear in called_linears(model).items():
                keep = supports.get(name)
                # whether the file fits the model is checked where it is used
                if keep is not None and keep.shape == linear.weight.shape:
                    check_derivable(saved_name(model, name), linear.weight, keep)

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        linears = dict(sparse_linears(model))
        if self.mask == "derived":
            for name, linear in linears.items():
                check_derivable(saved_name(model, name), linear.weight, linear.keep)
        starts = self._starts(model, bench, linears)

        def make(name: str, linear: SparseLinear) -> LorsLinear:
            settings = LorsSettings(
                scale=scale_of(self.alpha, self.rank, self.scale_rule),
                grad_mode=self.grad_mode,
                tile_rows=self.tile_rows,
                fuse_dtype=self.fuse_dtype,
                dtype=linear.weight.dtype,
            )
            return LorsLinear(linear, starts[name], settings, derived=self.mask == "derived")

        attach_adapters(model, make)

    def _starts(
        self, model: PreTrainedModel, bench: Workbench, linears: Mapping[str, SparseLinear]
    ) -> Mapping[str, Tensor]:
        # a resumed fit takes its factors from the checkpoint
        if self.init == "kaiming" or bench.resume_from is not None:
            generator = torch.Generator().manual_seed(bench.seed)
            return {
                name: kaiming_start(self.rank, linear.in_features, generator)
                for name, linear in linears.items()
            }
        start = GradientStart(
            rank=self.rank,
            samples=self.init_samples,
            batch_size=self.init_batch_size,
            micro_batch=bench.micro_batch,
            activation_checkpointing=bench.activation_checkpointing,
            oversample=self.init_oversample,
            niter=self.init_iterations,
            gamma=self.init_gamma,
            masked=self.init_masked,
            svd=self.init_svd,
            linears_per_pass=self.init_linears_per_pass,
            mixed=self.precision == "bf16-mixed",
            seed=bench.seed,
        )
        return start.starts(model, bench.train, bench.device)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return factors(model)


def check_derivable(name: str, weight: Tensor, keep: Tensor) -> None:
    """Raise ValueError where W != 0 would drop a kept weight."""
    zeros = int(((weight == 0) & keep.to(weight.device)).count_nonzero())
    if zeros:
        raise ValueError(
            f"method.mask=derived reads the support of {name} from its non-zero weights, but "
            f"{zeros} kept weights are exactly 0 and would be lost; use method.mask=stored"
        )
