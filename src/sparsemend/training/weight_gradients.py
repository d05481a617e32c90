"""Dense gradients of sparse linears before anything trains: where deltas and factors start.

A weight's gradient is taken the moment it exists, so that they are never there all at once as a
backward pass would leave them.  Where several passes add up, fp32 sums wait on the device if they
take less than half of what is free there, else on the host; which one changes no bit.  Blocks are
recomputed as in training, here by hand: a model's own way asks for training mode and its dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsemend.blocks.device_memory import free_bytes
from sparsemend.blocks.find import find_blocks
from sparsemend.data.base import Examples, trim
from sparsemend.sparse.linear import SparseLinear
from sparsemend.terminal import track
from sparsemend.training.batches import count_labels
from sparsemend.training.logits import next_token_loss

FREE_SHARE = 0.5  # of a device's free memory that sums may take; activations have the rest
Take = Callable[[str, Tensor], None]  # a linear's name and gradient (O, I), fp32


@dataclass(frozen=True, kw_only=True)
class Backward:
    """How gradients are computed: examples at once (None: all of a batch), and what is recomputed.

    mixed: under bf16 autocast.  for_init: the setting that asks for them, for errors.
    """

    micro_batch: int | None
    activation_checkpointing: bool
    mixed: bool
    for_init: str

    def parts(self, rows: Sequence[int], examples: Examples) -> list[Sequence[int]]:
        """`rows` in micro-batches, without those that have no label where others do."""
        size = self.micro_batch or len(rows)
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        labelled = [part for part in parts if count_labels(examples.labels[part])]
        return labelled or parts


def take_gradients(
    model: nn.Module,
    linears: Mapping[str, SparseLinear],
    examples: Examples,
    batches: Sequence[Sequence[int]],
    how: Backward,
    take: Take,
) -> None:
    """Call `take` with the mean over batches of every linear's gradient of a batch's mean loss.

    batches: lists of rows of `examples`.  The model, which computes where it lies, ends frozen and
    in eval mode.  A linear whose weight no example reaches has no gradient, or one of 0.
    """
    model.requires_grad_(False).eval()  # no dropout
    parts = [(rows, part) for rows in batches for part in how.parts(rows, examples)]
    sums: dict[str, Tensor] = {}
    if len(parts) > 1:
        place = place_of_sums(linears.values())
        sums = {n: torch.zeros(m.weight.shape, device=place) for n, m in linears.items()}
    with ExitStack() as stack:
        stack.callback(model.requires_grad_, False)
        if how.activation_checkpointing:
            stack.enter_context(recomputing_blocks(model))
        for name, linear in linears.items():
            linear.weight.requires_grad_(True)
            hook = partial(_move, take, name) if not sums else partial(_add, sums[name])
            handle = linear.weight.register_post_accumulate_grad_hook(hook)
            stack.callback(handle.remove)
        for rows, part in track(parts, "gradients for the start"):
            _backward(model, examples, rows, part, how)
    for name in list(sums):
        take(name, sums.pop(name).div_(len(batches)))


def _backward(
    model: nn.Module,
    examples: Examples,
    rows: Sequence[int],
    part: Sequence[int],
    how: Backward,
) -> None:
    """Add the gradient of a micro-batch's share in the mean loss over all labels of `rows`."""
    total, count = (count_labels(examples.labels[each]) for each in (rows, part))
    device = next(model.parameters()).device
    tokens, labels = trim(examples.tokens[part], examples.labels[part])
    with torch.autocast(device.type, torch.bfloat16) if how.mixed else nullcontext():
        loss = next_token_loss(model, tokens.to(device), labels.to(device))
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss.item()} on training examples {list(rows)}, which method.{how.for_init} "
            "reads; give every batch a labelled token, or use another start"
        )
    (loss * (count / total)).backward()


def _move(take: Take, name: str, weight: Tensor) -> None:
    gradient, weight.grad = weight.grad, None
    assert gradient is not None
    take(name, gradient.to(torch.promote_types(gradient.dtype, torch.float32)))


def _add(total: Tensor, weight: Tensor) -> None:
    assert weight.grad is not None
    total.add_(weight.grad.to(total.device, torch.float32))
    weight.grad = None


def place_of_sums(linears: Collection[SparseLinear]) -> torch.device:
    """The device of the linears if fp32 sums of all fit into its free memory, else the host."""
    weights = [linear.weight for linear in linears]
    device = weights[0].device
    needed = sum(4 * weight.numel() for weight in weights)
    return device if needed <= FREE_SHARE * (free_bytes(device) or 0) else torch.device("cpu")


@contextmanager
def recomputing_blocks(model: nn.Module) -> Iterator[None]:
    """Recompute what is inside the decoder blocks in backward, in eval mode too."""
    before = {}
    for block in find_blocks(model)[1]:
        before[block] = vars(block).get("forward")
        vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in before.items():
            del vars(block)["forward"]
            if forward is not None:
                vars(block)["forward"] = forward
