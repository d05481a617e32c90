"""Layer-wise rates by loops over single numbers, from the papers' formulas.

OWL (arXiv 2310.05175), DLP (2505.23807), AlphaPruning (2410.10912), ER (1707.04780) and LAMP
(2010.07611).  Activations come from one ordinary forward of the whole dense model with hooks, not
from a block-wise walk.
"""

import math
import statistics

import numpy as np
import torch
from torch import nn


def block_linears(blocks: nn.ModuleList) -> list[list[nn.Linear]]:
    """The linears of each block in module order."""
    return [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks]


def dense_scores(
    model: nn.Module, blocks: nn.ModuleList, tokens: torch.Tensor
) -> list[list[np.ndarray]]:
    """|W_ij| * sqrt(v_j) of every linear of every block; v: mean over sequences of sum_t x_j^2."""
    squared: dict[nn.Linear, np.ndarray] = {}

    def add(module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].double().numpy().reshape(-1, module.in_features)
        squared[module] = squared.get(module, 0.0) + (x**2).sum(axis=0)

    linears = block_linears(blocks)
    handles = [m.register_forward_pre_hook(add) for inner in linears for m in inner]
    with torch.no_grad():
        for row in tokens:
            model(input_ids=row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [
        [
            np.abs(m.weight.detach().double().numpy()) * np.sqrt(squared[m] / len(tokens))
            for m in inner
        ]
        for inner in linears
    ]


def outlier_percent(matrices: list[np.ndarray], multiple: float) -> float:
    """OWL's D of one block, in percent."""
    entries = [float(x) for matrix in matrices for x in matrix.flat]
    mean = math.fsum(entries) / len(entries)
    return 100 * sum(1 for x in entries if x > multiple * mean) / len(entries)


def owl_rates(percent: list[float], spread: float, sparsity: float) -> list[float]:
    """Density t_b - mean(t) + 1 - S with t_b in [0, 2 lambda], for blocks of one size."""
    low, high = min(percent), max(percent)
    t = [(d - low) / (high - low) * 2 * spread for d in percent]
    return [1 - (x - sum(t) / len(t) + 1 - sparsity) for x in t]


def dlp_rates(
    scores: list[list[np.ndarray]], alpha: float, sparsity: float, *, mean: bool
) -> list[float]:
    """Importance I_b = 1 - m_b / sum m; density from (I - min) / (max - min) * 2 alpha, centred."""
    pooled = [[float(x) for matrix in block for x in matrix.flat] for block in scores]
    m = [math.fsum(p) / len(p) if mean else statistics.median_low(p) for p in pooled]
    importance = [1 - value / math.fsum(m) for value in m]
    low, high = min(importance), max(importance)
    t = [(i - low) / (high - low) * 2 * alpha for i in importance]
    return [1 - (x - sum(t) / len(t) + 1 - sparsity) for x in t]


def eigenvalues(weight: np.ndarray) -> list[float]:
    """Eigenvalues of W^T W that are not zero, ascending, from the symmetric eigenproblem."""
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values = np.linalg.eigvalsh(small @ small.T)
    return sorted(float(v) for v in values if v > 0)


def hill_alpha(values: list[float], start: int) -> float:
    tail = values[start:]
    total = math.fsum(math.log(v) for v in tail)
    return 1 + len(tail) / (total - len(tail) * math.log(tail[0]))


def ks_distance(values: list[float], start: int) -> float:
    alpha = hill_alpha(values, start)
    if alpha <= 1:
        return 1.0
    tail = values[start:]
    gaps = [abs(1 - (v / tail[0]) ** (1 - alpha) - k / len(tail)) for k, v in enumerate(tail)]
    return max(gaps)


def alpha_mid(values: list[float]) -> float:
    return hill_alpha(values, len(values) // 2)


def alpha_peak(values: list[float], *, logarithmic_bound: bool) -> float:
    """The best-fitting tail among those that start near the fullest of 100 bins of log10."""
    logs = [math.log10(v) for v in values]
    low, high = min(logs), max(logs)
    counts = [0] * 100
    for value in logs:
        counts[min(int((value - low) / (high - low) * 100), 99)] += 1
    x = 10 ** (low + (high - low) * counts.index(max(counts)) / 100)
    lower = math.log10(0.95 * x) if logarithmic_bound else 0.95 * x
    starts = [i for i in range(len(values) - 1) if lower <= values[i] <= 1.5 * x]
    if not starts:
        return alpha_mid(values)
    return hill_alpha(values, min(starts, key=lambda i: (ks_distance(values, i), i)))


def alphapruning_rates(means: list[float], epsilon: float, sparsity: float) -> list[float]:
    """u_b in [1 - epsilon, 1 + epsilon], rescaled to the mean, for blocks of one size."""
    low, high = min(means), max(means)
    u = [(m - low) / (high - low) * 2 * epsilon + 1 - epsilon for m in means]
    return [x * sparsity * len(u) / math.fsum(u) for x in u]


def er_kept(shapes: list[tuple[int, int]], kept: float) -> list[float]:
    """epsilon (r + c) weights of each, all of it where that is more than it has; sum = kept.

    epsilon by bisection on the capped sum, which rises with it.
    """
    low, high = 0.0, max(r * c for r, c in shapes)
    for _ in range(200):
        epsilon = (low + high) / 2
        total = math.fsum(min(epsilon * (r + c), r * c) for r, c in shapes)
        low, high = (epsilon, high) if total < kept else (low, epsilon)
    return [min(low * (r + c), r * c) for r, c in shapes]


def lamp_scores(weight: np.ndarray) -> list[float]:
    """w^2 / sum of w'^2 over this weight and all that come after it in ascending order."""
    squares = sorted(float(w) ** 2 for w in weight.flat)
    return [s / math.fsum(squares[i:]) for i, s in enumerate(squares)]


def global_shares(scores: list[list[float]], sparsity: float) -> list[float]:
    """Share of each list among the round(S N) lowest of all entries."""
    entries = sorted((x, which) for which, values in enumerate(scores) for x in values)
    chosen = [which for _, which in entries[: round(sparsity * len(entries))]]
    return [chosen.count(which) / len(values) for which, values in enumerate(scores)]
