"""Perplexity of a causal language model over independent windows, one window at a time.

ppl = exp( mean over windows of l_w ), with l_w the mean cross-entropy of the T - 1 next-token
positions of a window of T tokens: the WikiText-2 (Merity et al., 2016, arXiv 1609.07843) protocol
of SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774) and Wanda (Sun et al., 2023,
arXiv 2306.11695).
"""

import math

import torch
from torch import Tensor, nn


def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Return the perplexity of model on tokens (N, T), cross-entropy on fp32 logits.

    model(input_ids).logits is (1, T, vocabulary); the caller has put the model in eval mode.
    """
    losses = []
    with torch.no_grad():
        for window in tokens:
            logits = model(window.reshape(1, -1)).logits[0].float()  # (T, vocabulary)
            log_probability = torch.log_softmax(logits, dim=-1)
            surprise = [-log_probability[t, window[t + 1]] for t in range(len(window) - 1)]
            losses.append(torch.stack(surprise).mean().item())
    return math.exp(sum(losses) / len(losses))
