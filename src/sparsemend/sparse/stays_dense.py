"""The prunable linears that no pruning gave a support: they stay plain, and no adapter meets them.

They count among the prunable weights, so that the sparsity achieved is below the target by what
they hold.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from sparsemend.blocks.find import is_never_called, prunable_linears
from sparsemend.blocks.names import saved_name
from sparsemend.sparse.linear import SparseLinear

log = logging.getLogger(__name__)

CALLED = "never called by the model, with inputs unknown"
REACHED = "reached by no calibration token, or by zeros alone"
LISTED = "without a support in the masks file"
SHOWN = 3  # names of a reason


def stays_dense(model: nn.Module, otherwise: str) -> dict[str, str]:
    """Name -> reason of the linears without a support.

    otherwise: the reason of those that the model calls, REACHED or LISTED.
    """
    plain = {n: m for n, m in prunable_linears(model).items() if not isinstance(m, SparseLinear)}
    return {n: CALLED if is_never_called(m) else otherwise for n, m in plain.items()}


def warn_dense(model: nn.Module, reasons: Mapping[str, str]) -> None:
    """Log one warning that names the first of the linears that stay dense, with the reasons."""
    if not reasons:
        return
    parts = []
    for reason in dict.fromkeys(reasons.values()):
        names = [saved_name(model, name) for name, other in reasons.items() if other == reason]
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{', '.join(names[:SHOWN])}{rest} ({reason})")
    log.warning(
        "%d linears stay dense, which the sparsity achieved counts: %s",
        len(reasons),
        "; ".join(parts),
    )
