"""Which form of the kernels runs here, decided once per process.

$SPARSEMEND_ENGINE names one (`portable`, `avx2`, `avx512`, `avx512_bf16`,
`amx`), or `torch` for none.
Unset, it is the best form of the processor, and torch where that form would be slower than a dense
product.  Torch multiplies by the dense weight, of which a copy is made: the same results at dense
speed and in more memory, after a warning that says why.
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from sparsemend.engine.build import FORMS, KEY, TORCH, NoKernels, asked_form
from sparsemend.engine.library import Factor, Kernels, best_form, load_kernels
from sparsemend.engine.packed import VALUES, pack_weight

log = logging.getLogger(__name__)

SLOW = ("portable",)  # forms that a dense product beats, chosen only where they are asked for


def kernels() -> Kernels | None:
    """The kernels that products use, None where torch does them."""
    return _decide(asked_form())


@cache
def _decide(asked: str) -> Kernels | None:
    if asked == TORCH:
        return None
    try:
        return _kernels_of(asked)
    except NoKernels as reason:
        log.warning("packed weights are multiplied as dense ones, by torch: %s", reason)
        return None


def _kernels_of(asked: str) -> Kernels:
    library = load_kernels()
    best = best_form(library)
    form = asked or best
    if FORMS.index(form) > FORMS.index(best):
        raise NoKernels(f"{KEY}={form}, and this processor has at most {best}")
    if not asked and form in SLOW:
        raise NoKernels("this processor has neither AVX2 nor AVX-512")
    kernels = Kernels(library, form)
    _try(kernels)
    return kernels


def _try(kernels: Kernels) -> None:
    """Multiply by one small matrix: a compiler that breaks the kernels is noticed here."""
    weight = (torch.arange(5 * 70).reshape(5, 70) % 7 - 3).float()
    for values, count in (("float32", 3), ("bfloat16", 1), ("bfloat16", 7), ("bfloat16", 17)):
        dtype = VALUES[values]
        packed = pack_weight(weight.to(dtype), keep=None, values=values)
        tokens = (torch.arange(count * 70).reshape(count, 70) % 5 - 2).float()
        factor = Factor(packed.mask, packed.values, packed.offsets, None, None, 5)
        expected = (tokens @ weight.T).to(dtype)  # small integers: exact, or rounded once
        if not torch.equal(kernels.multiply(tokens.to(dtype), factor), expected):
            raise NoKernels("the compiled kernels give wrong products")
