"""Where LoRS' factors start: the leading right singular vectors of the loss gradient.

    G = mean over batches of dLoss/dW (O, I),  G ~ U S V^T,  A = first r rows of V^T / gamma

With B = 0 the first gradient step moves B A along the best rank-r approximation of -G while the
model itself starts unchanged (LoRS, Hu et al. 2025, arXiv 2501.08582; the recipe follows its
released code and LoRA-GA, Wang et al. 2024, arXiv 2407.05000).  G is keyed by module, so a bias
cannot take its place as in the released code, and summed in fp32 on the host, where each linear's
gradient goes as soon as it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import Examples
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.terminal import track
from sparsemend.training.batches import count_labels, permutation, trim
from sparsemend.training.logits import next_token_loss


@dataclass(frozen=True, kw_only=True)
class GradientStart:
    """The settings of A's start: `samples` examples in batches, and which singular vectors.

    micro_batch: examples at once, None for all of a batch; the batch's mean stays over its labels.
    """

    rank: int
    samples: int
    batch_size: int
    micro_batch: int | None
    oversample: int
    niter: int
    gamma: float
    masked: bool
    svd: str
    linears_per_pass: int | None
    mixed: bool
    seed: int

    def starts(
        self, model: PreTrainedModel, examples: Examples, device: torch.device
    ) -> dict[str, Tensor]:
        """A (R, I) per linear, fp32 on the host; the model ends frozen, in eval mode."""
        linears = dict(sparse_linears(model))
        index = {name: i for i, name in enumerate(linears)}
        home = next(model.parameters()).device
        nn.Module.to(model, device)
        starts = {}
        for names in _groups(list(linears), self.linears_per_pass):
            part = {name: linears[name] for name in names}
            for name, gradient in self._gradients(model, part, examples, device).items():
                kept = gradient * linears[name].keep.cpu() if self.masked else gradient
                starts[name] = self._rows(kept.to(device), index[name]).cpu()
        nn.Module.to(model, home)
        return starts

    def _gradients(
        self,
        model: PreTrainedModel,
        linears: Mapping[str, SparseLinear],
        examples: Examples,
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Mean dense gradient of each linear's weight, fp32 on the host."""
        sums = {n: torch.zeros(linear.weight.shape) for n, linear in linears.items()}
        model.requires_grad_(False).eval()  # no dropout
        hooks = []
        for name, linear in linears.items():
            linear.weight.requires_grad_(True)
            hooks.append(linear.weight.register_post_accumulate_grad_hook(_stream(sums[name])))
        try:
            batches = self._batches(examples)
            for rows in track(batches, "gradients for the start"):
                self._backward(model, examples, rows, device)
        finally:
            for hook in hooks:
                hook.remove()
            model.requires_grad_(False)
        return {name: total.div_(len(batches)) for name, total in sums.items()}

    def _backward(
        self, model: PreTrainedModel, examples: Examples, rows: list[int], device: torch.device
    ) -> None:
        """Add the gradient of the mean loss over all labels of the examples `rows`."""
        total, size = count_labels(examples.labels[rows]), self.micro_batch or len(rows)
        for part in (rows[first : first + size] for first in range(0, len(rows), size)):
            tokens, labels = trim(examples.tokens[part], examples.labels[part])
            count = count_labels(labels)
            if total and not count:
                continue
            mixed = torch.autocast(device.type, torch.bfloat16) if self.mixed else nullcontext()
            with mixed:
                loss = next_token_loss(model, tokens.to(device), labels.to(device))
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss.item()} on training examples {rows}, which method.init="
                    "grad_svd reads; give every batch a labelled token, or use "
                    "method.init=kaiming"
                )
            (loss * (count / total)).backward()

    def _batches(self, examples: Examples) -> list[list[int]]:
        """The first `samples` rows in the order in which training will read them."""
        order = permutation(len(examples), seed=self.seed, epoch=0)[: self.samples]
        size = self.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _rows(self, gradient: Tensor, index: int) -> Tensor:
        devices = [gradient.device] if gradient.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # one seed per linear: the result does not depend on who computes which
            torch.manual_seed(mix_seed(self.seed, index))
            return leading_rows(
                gradient,
                self.rank,
                oversample=self.oversample,
                niter=self.niter,
                exact=self.svd == "exact",
            ).div_(self.gamma)


def leading_rows(
    gradient: Tensor, rank: int, *, oversample: int, niter: int, exact: bool
) -> Tensor:
    """The first `rank` right singular vectors of `gradient` (O, I) as rows, fp32.

    By randomised SVD with oversample * rank directions and `niter` power iterations (Halko et al.
    2011), close where the spectrum decays.  A vector's sign is arbitrary: its largest entry is
    made positive.
    """
    if exact:
        rows = torch.linalg.svd(gradient.float(), full_matrices=False)[2][:rank]
    else:
        directions = min(oversample * rank, *gradient.shape)
        rows = torch.svd_lowrank(gradient.float(), q=directions, niter=niter)[2].T[:rank]
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()


def _stream(total: Tensor) -> Callable[[Tensor], None]:
    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad.to("cpu", torch.float32))
        parameter.grad = None

    return move


def _groups(names: Sequence[str], size: int | None) -> Iterator[list[str]]:
    rest = iter(names)
    while group := list(islice(rest, size or len(names))):
        yield group
