"""The distance of LoRS' rearranged gradient from the exact one, and the cost of each.

With G = D^T x and the mask M = keep, exact factor gradients are s (M * G) A^T and s B^T (M * G);
LoRS leaves M out (Hu et al. 2025, arXiv 2501.08582).  For factors unrelated to G their cosine is
about the square root of the density; along the leading singular vectors of G, where LoRS starts,
it is higher, and higher still where the spectrum decays as loss gradients' does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.bench.suite.base import BenchRow, Column, Section, Setting, Suite, schedule
from sparsemend.instruments import time_and_peak
from sparsemend.method.adapter.lors_function import LorsFunction, LorsSettings
from sparsemend.sparse.packing import pack
from sparsemend.terminal import track
from sparsemend.training.plan import check_choice

EXACT = "exact"
UNRELATED, FLAT, DECAYING = "unrelated", "along flat G", "along 1/k G"
TILE = 1024  # rows of a strip; only the tiled mode reads it


def cosine_column(kind: str) -> Column:
    return Column(f"cos {kind}", lambda figures: f"{figures['cosine'][kind]:.3f}")


COLUMNS = tuple(cosine_column(kind) for kind in (UNRELATED, FLAT, DECAYING))


@dataclass(frozen=True)
class Problem:
    """One backward pass: G (O, I), factors A (R, I) and B (O, R), support keep (O, I)."""

    gradient: Tensor
    a: Tensor
    b: Tensor
    keep: Tensor

    def factor_gradients(self, grad_mode: str) -> list[Tensor]:
        """[dA, dB] at scale 1 with x the identity, so that D^T x is G."""
        dtype = self.gradient.dtype
        settings = LorsSettings(1.0, grad_mode, TILE, "float32", dtype)
        leaves = [factor.clone().requires_grad_() for factor in (self.a, self.b)]
        x = torch.eye(self.gradient.shape[1], dtype=dtype, device=self.gradient.device)
        weight = torch.ones_like(self.gradient)
        y = LorsFunction.apply(x, weight, *leaves, None, pack(self.keep), settings)
        return list(torch.autograd.grad(y, leaves, self.gradient.T))

    def cosine(self, grad_mode: str) -> float:
        """Mean over dA and dB of the cosine between the mode's gradient and the exact one."""
        pairs = zip(self.factor_gradients(grad_mode), self.factor_gradients(EXACT), strict=True)
        return sum(float(F.cosine_similarity(o.flatten(), e.flatten(), 0)) for o, e in pairs) / 2


@dataclass(kw_only=True)
class Gradients(Suite):
    """Compares `grad_mode` with the exact gradient at every density."""

    densities: list[float]
    rank: int
    grad_mode: str

    def __post_init__(self) -> None:
        check_choice("grad_mode", self.grad_mode, ("ste", "released"))

    def sections(self, setting: Setting) -> Iterator[Section]:
        for density in self.densities:
            problems = self.problems(setting, density)
            rows = {label: BenchRow(label=label) for label in (EXACT, self.grad_mode)}
            for label, row in rows.items():
                row.figures["cosine"] = {k: p.cosine(label) for k, p in problems.items()}
            for _, label in track(schedule(list(rows), setting.rounds), f"density {density}"):
                work = partial(problems[UNRELATED].factor_gradients, label)
                rows[label].seconds.append(time_and_peak(work, setting.device)[0])
            yield Section(
                title=f"density {density}, rank {self.rank}",
                baseline=EXACT,
                columns=COLUMNS,
                rows=list(rows.values()),
            )

    def problems(self, setting: Setting, density: float) -> Mapping[str, Problem]:
        """The same mask under factors unrelated to G, and along G's leading singular vectors."""
        generator = torch.Generator().manual_seed(setting.seed)
        size, rank = setting.shape.hidden, self.rank

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(setting.device)

        keep = (torch.rand(size, size, generator=generator) < density).to(setting.device)
        flat = random(size, size)
        u, _, vh = torch.linalg.svd(flat)
        spectrum = 1 / torch.arange(1, size + 1, dtype=flat.dtype, device=flat.device)
        aligned = (vh[:rank].contiguous(), u[:, :rank].contiguous())
        return {
            UNRELATED: Problem(flat, random(rank, size), random(size, rank), keep),
            FLAT: Problem(flat, *aligned, keep),
            DECAYING: Problem(u * spectrum @ vh, *aligned, keep),
        }
