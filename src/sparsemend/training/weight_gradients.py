"""Dense gradients of sparse linears before anything trains: where deltas and factors start.

A weight's gradient is taken the moment it exists, so that they are never there all at once as a
backward pass would leave them.  Where several passes add up, fp32 sums wait on the device if they
take less than half of what is free there, else on the host; which one changes no bit.  Blocks are
recomputed as in training, here by hand: a model's own way asks for training mode and its dropout.

float16 ends at 6e-8 and at 65504, so the loss of a float16 model is multiplied by a power of two,
which is taken off in fp32; gradients that overflow are computed again at the next lower one.
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

SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)  # of a float16 loss, as GradScaler's first
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
    Raises FloatingPointError where a loss or gradient is not finite.
    """
    model.requires_grad_(False).eval()  # no dropout
    parts = [(rows, part) for rows in batches for part in how.parts(rows, examples)]
    sums: dict[str, Tensor] = {}
    if len(parts) > 1:
        place = place_of_sums(linears.values())
        sums = {n: torch.zeros(m.weight.shape, device=place) for n, m in linears.items()}
    half = any(linear.weight.dtype == torch.float16 for linear in linears.values())
    scaled = _Scaled(SCALES if half else (1.0,))
    with ExitStack() as stack:
        stack.callback(model.requires_grad_, False)
        if how.activation_checkpointing:
            stack.enter_context(recomputing_blocks(model))
        for name, linear in linears.items():
            linear.weight.requires_grad_(True)
            hand_on = partial(_add, sums[name]) if sums else partial(_move, take, name)
            hook = partial(scaled.receive, name, hand_on)
            handle = linear.weight.register_post_accumulate_grad_hook(hook)
            stack.callback(handle.remove)
        for rows, part in track(parts, "gradients for the start"):
            scaled.run(partial(_backward, model, examples, rows, part, how), how)
    for name in list(sums):
        take(name, sums.pop(name).div_(len(batches)))


def _backward(
    model: nn.Module,
    examples: Examples,
    rows: Sequence[int],
    part: Sequence[int],
    how: Backward,
    scale: float,
) -> None:
    """Add `scale` times the gradient of a micro-batch's share in the mean loss over all labels."""
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
    (loss * (count / total * scale)).backward()


class _Scaled:
    """Hands each gradient of a micro-batch on once, at the first of `scales` where it is finite."""

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales, self.scale = scales, scales[0]
        self.received: set[str] = set()
        self.overflowed: list[str] = []

    def run(self, backward: Callable[[float], None], how: Backward) -> None:
        """Carry out `backward` at lower and lower scales until all gradients are handed on."""
        self.received.clear()
        for scale in self.scales:
            self.scale = scale
            self.overflowed.clear()
            backward(scale)
            if not self.overflowed:
                return
        raise FloatingPointError(
            f"the gradient of {self.overflowed[0]}, which method.{how.for_init} reads, is not "
            "finite; use another start, or a model.dtype of a wider range, as bfloat16"
        )

    def receive(self, name: str, hand_on: Callable[[Tensor, float], None], weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if name in self.received:
            return
        if not torch.stack(gradient.aminmax()).isfinite().all():  # NaN too, and no mask in memory
            self.overflowed.append(name)
            return
        self.received.add(name)
        hand_on(gradient, self.scale)


def _move(take: Take, name: str, gradient: Tensor, scale: float) -> None:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    take(name, gradient.to(wide).div_(scale))


def _add(total: Tensor, gradient: Tensor, scale: float) -> None:
    total.add_(gradient.to(total.device, torch.float32), alpha=1 / scale)


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
