"""Calibration statistics, one sequence after the other, all in fp32.

Wanda (Sun et al., 2023, arXiv 2306.11695): mean over sequences of the squared token norm of each
input.  SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774): H = (2/N) sum X^T X.
DSnoT (Zhang et al., 2023, arXiv 2310.08915): token sums s, squared norms q, variances v.

Every function takes the inputs of one linear layer, one tensor (tokens, C) per sequence, in
calibration order.  The order of roundings is part of the definition: the norm is taken before it
is squared, and the running value is rescaled by a ratio formed in float64.
"""

import math

import torch
from torch import Tensor


def wanda_scaler_row(inputs: list[Tensor]) -> Tensor:
    """Return v (C,), the mean over sequences of ||x_c||^2 over the tokens of one sequence."""
    running = torch.zeros(inputs[0].shape[1], dtype=torch.float32)
    for seen, tokens in enumerate(inputs):
        x = tokens.t().float()  # (C, tokens)
        running = running * (seen / (seen + 1))
        running = running + torch.norm(x, p=2, dim=1) ** 2 / (seen + 1)
    return running


def sparsegpt_hessian(inputs: list[Tensor]) -> Tensor:
    """Return H (C, C) = (2/N) sum over sequences of X^T X, accumulated as a running mean."""
    columns = inputs[0].shape[1]
    hessian = torch.zeros(columns, columns, dtype=torch.float32)
    for seen, tokens in enumerate(inputs):
        hessian = hessian * (seen / (seen + 1))
        z = math.sqrt(2 / (seen + 1)) * tokens.t().float()  # (C, tokens)
        hessian = hessian + z @ z.t()
    return hessian


def dsnot_statistics(inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (s, q, v), each (C,): mean token sum, mean squared token norm, mean variance.

    s and q weigh every sequence alike, v weighs it by its tokens and leaves out the variance
    between the means of the sequences.
    """
    columns = inputs[0].shape[1]
    s = torch.zeros(columns, dtype=torch.float32)
    q = torch.zeros(columns, dtype=torch.float32)
    v = torch.zeros(columns, dtype=torch.float32)
    tokens_seen = 0
    for seen, tokens in enumerate(inputs):
        x = tokens.t().float()  # (C, tokens)
        tokens_now = x.shape[1]
        variance = torch.var(x, dim=1, unbiased=False)
        if seen == 0:
            v = variance
        else:
            v = (v * tokens_seen + variance * tokens_now) / (tokens_seen + tokens_now)
        tokens_seen += tokens_now

        q = q * (seen / (seen + 1))
        s = s * (seen / (seen + 1))
        q = q + torch.norm(x, p=2, dim=1) ** 2 / (seen + 1)
        s = s + torch.sum(x, dim=1) / (seen + 1)
    return s, q, v
