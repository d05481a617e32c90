"""What forming keep * (W + s B A) takes, against a copy that moves as many bytes.

The operator reads W and a bit per weight and writes the result, a copy reads W and writes it; both
make a new tensor, as a step does.  Large new tensors cost page faults, of which the kernel asks the
system for fewer; so a copy into memory at hand stands beside them, and torch's operators, as they
form the weight where no kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor

from sparsemend.bench.suite.base import BenchRow, Column, Section, Setting, Suite, schedule
from sparsemend.method.adapter.fused.kernels import kernel
from sparsemend.method.adapter.fused.plain import form_in_strips
from sparsemend.method.adapter.fused.weight import OPERATOR, bytes_moved
from sparsemend.model import DTYPES
from sparsemend.sparse.packing import pack
from sparsemend.terminal import track

COPY, HELD, FUSED, TORCH = "copy", "copy, memory at hand", "fused operator", "torch"


def per_weight(figures: Mapping[str, Any]) -> str:
    return f"{figures['bytes_per_weight']:.2f}"


def bandwidth(figures: Mapping[str, Any]) -> str:
    return f"{figures['nbytes'] / figures['median_seconds'] / 1e9:.1f}"


COLUMNS = (Column("B/weight", per_weight), Column("GB/s", bandwidth))


@dataclass(kw_only=True)
class Merge(Suite):
    """Forms the merged weight of one linear of `rows` x `columns`, in every dtype."""

    dtypes: list[str]
    rows: int
    columns: int
    rank: int
    calls: int
    clock: str

    @torch.inference_mode()
    def sections(self, setting: Setting) -> Iterator[Section]:
        for name in self.dtypes:
            labelled = self._calls(setting, DTYPES[name])
            rows = {label: self._row(label, DTYPES[name].itemsize) for label in labelled}
            for calls in labelled.values():
                calls[0]()  # the warm-up; a kernel is compiled here
            for _, label in track(schedule(list(rows), setting.rounds), name):
                rows[label].seconds.append(min(map(self._seconds, labelled[label])))
            yield Section(
                title=f"{self.rows} x {self.columns}, rank {self.rank}, {name}, "
                f"kernel {self._form(setting)}",
                baseline=COPY,
                columns=COLUMNS,
                rows=list(rows.values()),
            )

    def _row(self, label: str, itemsize: int) -> BenchRow:
        """The bytes of torch's row are a copy's: what it moves beyond them depends on the cache."""
        weights = self.rows * self.columns
        moved = 2 * itemsize * weights
        if label == FUSED:
            moved = bytes_moved(self.rows, self.columns, self.rank, itemsize)
        figures = {"nbytes": moved, "bytes_per_weight": moved / weights}
        return BenchRow(label=label, figures=figures)

    def _seconds(self, call: Callable[[], Tensor]) -> float:
        now = thread_time if self.clock == "cpu" else perf_counter
        started = now()
        formed = call()
        if formed.is_cuda:
            torch.cuda.synchronize(formed.device)
        return now() - started

    def _calls(self, setting: Setting, dtype: torch.dtype) -> dict[str, list[Callable[[], Tensor]]]:
        """Every row's calls, on weights of their own, which are in no cache."""
        generator = torch.Generator().manual_seed(setting.seed)
        labelled: dict[str, list[Callable[[], Tensor]]] = {}
        for _ in range(self.calls):
            for label, call in self._calls_of_one(setting, dtype, generator):
                labelled.setdefault(label, []).append(call)
        return labelled

    def _calls_of_one(
        self, setting: Setting, dtype: torch.dtype, generator: torch.Generator
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        keep = torch.rand(self.rows, self.columns, generator=generator) >= setting.sparsity
        weight = (random(self.rows, self.columns) * keep).to(setting.device, dtype)
        a, b = random(self.rank, self.columns), random(self.rows, self.rank)
        a, b, packed = (tensor.to(setting.device) for tensor in (a, b, pack(keep)))
        yield COPY, weight.clone
        yield HELD, partial(torch.empty_like(weight).copy_, weight)
        yield FUSED, partial(OPERATOR, weight, a, b, packed, 2.0, 1.0, torch.float32, dtype)
        yield TORCH, partial(form_in_strips, weight, a, b, packed, base=1.0, dtype=dtype)

    def _form(self, setting: Setting) -> str:
        if setting.device.type != "cpu":
            return setting.device.type
        compiled = kernel()
        return "none" if compiled is None else compiled.form
