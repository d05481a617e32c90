"""Where LoRS' factors start: the leading right singular vectors of the loss gradient.

    G = mean over batches of dLoss/dW (O, I),  G ~ U S V^T,  A = first r rows of V^T / gamma

With B = 0 the first gradient step moves B A along the best rank-r approximation of -G while the
model itself starts unchanged (LoRS, Hu et al. 2025, arXiv 2501.08582; the recipe follows its
released code and LoRA-GA, Wang et al. 2024, arXiv 2407.05000).  G is keyed by module, so a bias
cannot take its place as in the released code, and summed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import Examples
from sparsemend.sparse.linear import sparse_linears
from sparsemend.training.batches import permutation
from sparsemend.training.weight_gradients import Backward, take_gradients


@dataclass(frozen=True, kw_only=True)
class GradientStart:
    """The settings of A's start: `samples` examples in batches, and which singular vectors.

    micro_batch: examples at once, None for all of a batch; the batch's mean stays over its labels.
    activation_checkpointing: as in training.
    """

    rank: int
    samples: int
    batch_size: int
    micro_batch: int | None
    activation_checkpointing: bool
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
        starts: dict[str, Tensor] = {}

        def take(name: str, gradient: Tensor) -> None:
            gradient = gradient.to(device)
            if self.masked:
                gradient *= linears[name].keep
            starts[name] = self._rows(gradient, index[name]).cpu()

        for names in _groups(list(linears), self.linears_per_pass):
            part = {name: linears[name] for name in names}
            take_gradients(model, part, examples, self._batches(examples), self._backward, take)
            for name in part.keys() - starts.keys():  # an expert that no token chose
                take(name, torch.zeros(part[name].weight.shape))
        nn.Module.to(model, home)
        return {name: starts[name] for name in linears}

    @property
    def _backward(self) -> Backward:
        return Backward(
            micro_batch=self.micro_batch,
            activation_checkpointing=self.activation_checkpointing,
            mixed=self.mixed,
            for_init="init=grad_svd",
        )

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


def _groups(names: Sequence[str], size: int | None) -> Iterator[list[str]]:
    rest = iter(names)
    while group := list(islice(rest, size or len(names))):
        yield group
