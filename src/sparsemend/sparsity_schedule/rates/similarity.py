"""How similar the inputs of any two decoder blocks are, one block's activations at a time.

    K_i = X_i X_i^T   (n, n), X_i (n, T D): the inputs of block i, one row per sequence
    C_ij = <H K_i H, H K_j H> / (|H K_i H| |H K_j H|),   H = I - 1 1^T / n

Biased linear CKA (normalised HSIC) over sequences, LoSA's representation mutual information (Huang
et al. 2025, arXiv 2502.14816).  The reference stores X_i of every block and forms two Gram matrices
per pair; here only K_i is kept of a block's activations, and C is one product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemend.blocks.hidden_states import HiddenStates
from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.walk import Calibration

STRIP_BYTES = 2**25  # a wide copy of the activations is no larger than this, a GEMM still large


@torch.no_grad()
def block_similarity(model: nn.Module, calibration: Calibration, samples: int) -> Tensor:
    """C (L, L), fp64 on the CPU, from the first `samples` sequences.

    Raises ValueError where there are fewer.
    """
    rows = []
    available = len(calibration.windows)
    if available < samples:
        raise ValueError(
            f"similarity_samples={samples} exceeds the {available} calibration sequences; set "
            f"data.calibration_samples={samples} or lower similarity_samples"
        )
    for visit in calibration.first(samples).walk(model):
        products = gram(visit.inputs).cpu()
        centred = centre(products)
        norm = centred.norm()
        # centring equal rows leaves only the rounding of fp32 products, 6e-8 of their size
        if not norm > 1e-7 * products.norm():
            raise ValueError(
                f"{visit.name} gets the same input for all {samples} calibration sequences, so its "
                "similarity to other blocks is undefined; give calibration data that differ"
            )
        rows.append((centred / norm).flatten())
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def gram(states: Sequence[Tensor]) -> Tensor:
    """K (n, n), fp64, of hidden states (B, T, D), n the sum of the B; a row is a sequence.

    Several states per token, (S, B, T, D) as of Gemma-3n, lie side by side in a row.  Products in
    fp32 (fp64 where the states are), over strips of tokens that are summed in fp64.
    """
    first = _side_by_side(states[0])
    windows = [shape[-3] for shape in _shapes(states)]
    count, (_, length, width) = sum(windows), first.shape
    wide = torch.promote_types(first.dtype, torch.float32)
    strip = max(1, STRIP_BYTES // (count * width * wide.itemsize))
    device = first.device
    total = torch.zeros(count, count, dtype=sums_dtype(device), device=device)
    for start in range(0, length, strip):
        rows = torch.cat(
            [_tokens(states, n, start, start + strip).to(wide) for n in range(len(states))]
        )
        rows = rows.flatten(1)
        total += rows @ rows.T
    return total


def _side_by_side(state: Tensor) -> Tensor:
    """(B, T, S D) of several states per token (S, B, T, D), one as it is."""
    return state if state.ndim == 3 else state.movedim(0, -2).flatten(-2)


def _shapes(states: Sequence[Tensor]) -> list[torch.Size]:
    if isinstance(states, HiddenStates):
        return [states.shape(batch) for batch in range(len(states))]
    return [state.shape for state in states]


def _tokens(states: Sequence[Tensor], batch: int, first: int, last: int) -> Tensor:
    """Some tokens of a batch, without reading others where they lie in a file one by one."""
    if isinstance(states, HiddenStates) and len(states.shape(batch)) == 3:
        return states.tokens(batch, first, last)
    return _side_by_side(states[batch])[:, first:last]


def centre(gram: Tensor) -> Tensor:
    """H K H, symmetric to the last bit."""
    centred = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    return (centred + centred.T) / 2
