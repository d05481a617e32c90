"""What sparsity buys in a product with one linear, told apart from what a better kernel buys.

Packed weights (`engine`) stand beside torch's dense products and our own dense kernel, which shares
all but the packing, and beside reading the bytes of a dense bfloat16 weight and doing nothing.
Weights and masks are random.  Every row has several weights, so that none is in a cache when its
turn comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.bench.suite.base import BenchRow, Column, Section, Setting, Suite, schedule
from sparsemend.bench.suite.card import Replayed, calls_on_card
from sparsemend.bench.suite.ours import GAINS, note_ratios, seconds
from sparsemend.engine.choice import kernels
from sparsemend.engine.library import Factor, Kernels
from sparsemend.engine.operator import multiply
from sparsemend.engine.packed import VALUES, pack_weight, unpack_weight
from sparsemend.engine.pages import copied_to_large_pages
from sparsemend.terminal import track

BASELINE = "torch bfloat16"
OURS = "our dense bfloat16"
READ = "read"
# of the norm: torch's int8 has one scale per matrix, and rounds its inputs so too; the largest of
# either is some five times the usual, so that errors are 5 / 127 / 12^0.5 = 1e-2 and more
ROUNDED = 5e-2


@dataclass(frozen=True)
class TimedProduct:
    """One product and the bytes of its weight; expected: what it gives, None for no product."""

    work: Callable[[], object]
    nbytes: int
    expected: Tensor | None


COLUMNS = (
    *GAINS,
    Column("GB/s", lambda row: f"{row['nbytes'] / row['median_seconds'] / 1e9:.1f}"),
    Column("off", lambda row: f"{row['off']:.0e}"),
)


@dataclass(kw_only=True)
class Inference(Suite):
    """Times products of `inputs` tokens with a linear of `rows` x `columns` at every density."""

    densities: list[float]
    rows: int
    columns: int
    inputs: int
    calls: int
    clock: str

    @torch.inference_mode()
    def sections(self, setting: Setting) -> Iterator[Section]:
        device = setting.device
        on_card = device.type == "cuda"
        chosen = None if on_card else kernels()
        form = device.type if on_card else "torch" if chosen is None else chosen.form
        for density in self.densities:
            labelled = self._products(setting.seed, density, chosen, device)
            rows = {label: _checked_row(label, calls) for label, calls in labelled.items()}
            labels = [label for label, row in rows.items() if row.refused is None]
            timers = {label: self._timer(labelled[label], device) for label in labels}
            for _, label in track(schedule(labels, setting.rounds), f"density {density}"):
                rows[label].seconds.append(timers[label]())
            note_ratios(rows, OURS)
            yield Section(
                title=f"{self.rows} x {self.columns}, density {density}, {self.inputs} inputs, "
                f"kernels {form}",
                baseline=BASELINE,
                columns=COLUMNS,
                rows=list(rows.values()),
            )

    def _timer(self, calls: list[TimedProduct], device: torch.device) -> Callable[[], float]:
        """What takes the seconds of a round: of the fastest call, on a card of an average one."""
        works = [call.work for call in calls]
        if device.type == "cuda":
            return Replayed(works, device).seconds
        return lambda: min(seconds(self.clock, work) for work in works)

    def _products(
        self, seed: int, density: float, chosen: Kernels | None, device: torch.device
    ) -> dict[str, list[TimedProduct]]:
        """Every row's calls, on weights of their own."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.inputs, self.columns, generator=generator).bfloat16()
        labelled: dict[str, list[TimedProduct]] = {}
        for _ in range(self.calls):
            weight = torch.randn(self.rows, self.columns, generator=generator)
            weight *= torch.rand(self.rows, self.columns, generator=generator) < density
            if device.type == "cuda":
                for call in calls_on_card(x, weight.bfloat16(), device, READ):
                    timed = TimedProduct(call.work, call.nbytes, call.expected)
                    labelled.setdefault(call.label, []).append(timed)
                continue
            for label, product in _calls(x, weight.bfloat16(), chosen):
                labelled.setdefault(label, []).append(product)
        return labelled


def _calls(x: Tensor, weight: Tensor, chosen: Kernels | None) -> Iterator[tuple[str, TimedProduct]]:
    wide, wide_x = weight.float(), x.float()
    expected = wide_x @ wide.T
    yield BASELINE, TimedProduct(lambda: F.linear(x, weight), weight.nbytes, expected)
    yield "torch float32", TimedProduct(lambda: F.linear(wide_x, wide), wide.nbytes, expected)
    dynamic = _dynamic_int8(wide)
    yield "torch int8 dynamic", TimedProduct(lambda: dynamic(wide_x), weight.numel(), expected)
    if chosen is not None:
        # on large pages, as what is packed: memory is read faster there
        large, wide_large = copied_to_large_pages(weight), copied_to_large_pages(wide)
        yield READ, TimedProduct(lambda: chosen.read(large), large.nbytes, None)
        for label, tokens, dense in ((OURS, x, large), ("our dense float32", wide_x, wide_large)):
            factor = Factor(None, dense, None, None, None, len(dense))
            work = partial(chosen.multiply, tokens, factor)
            yield label, TimedProduct(work, dense.nbytes, expected)
    for values in VALUES:
        packed = pack_weight(weight, keep=None, values=values)
        factor = Factor(packed.mask, packed.values, packed.offsets, packed.scale, None, len(weight))
        work = partial(multiply, chosen, wide_x if values == "float32" else x, factor)
        product = wide_x @ unpack_weight(packed).float().T
        yield f"packed {values}", TimedProduct(work, packed.nbytes, product)


def _dynamic_int8(weight: Tensor) -> nn.Module:
    """torch's dense int8 linear, which rounds its inputs to int8 as they come."""
    from torch.ao.nn.quantized.dynamic import Linear

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and nothing has replaced it on a CPU
        module = Linear.from_float(linear)
    assert isinstance(module, nn.Module)
    return module


def _checked_row(label: str, calls: list[TimedProduct]) -> BenchRow:
    """The row with its distance from the product of its weight, refused where that is too far.

    The first calls are the warm-up, too.
    """
    row = BenchRow(label=label, figures={"nbytes": calls[0].nbytes, "off": 0.0})
    for call in calls:
        try:
            output = call.work()
        except ValueError as error:
            row.refused = str(error)
            return row
        if call.expected is None:
            continue
        assert isinstance(output, Tensor)
        distance = float((output.float() - call.expected).norm() / call.expected.norm())
        row.figures["off"] = max(row.figures["off"], distance)
    if not row.figures["off"] <= ROUNDED:
        row.refused = f"its output is {row.figures['off']:.2g} of its norm off the product"
    return row
