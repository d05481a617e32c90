"""What a fit's checkpoints hold: what it may change, and a mark of what it may not.

The frozen base is in the model folder and the support of a method that moves none is that of the
pruned model, which a resumed run has again.  Writing them at every validation would cost a model's
bytes each time.  So a checkpoint holds trained tensors, what adapters declare as `moving`, and
supports where a callback moves them; of the supports that it leaves to the model it has a digest,
which must be that of the model it is loaded into.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.training.mask_callbacks import UpdateMasks

SUPPORT = "packed_keep"
DIGEST = "fixed_supports"  # the key of the digest in a checkpoint


def moves_supports(callbacks: Iterable[Callback]) -> bool:
    """Whether one of a method's callbacks moves the supports of plain sparse linears."""
    return any(isinstance(each, UpdateMasks) and each.moves_supports for each in callbacks)


def changing_tensors(module: nn.Module, *, supports: bool) -> dict[str, Tensor]:
    """The tensors that a fit may change, by name in the state of `module`.

    supports: those of all sparse linears are among them.
    """
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    for name, linear in sparse_linears(module):
        tensors = (*linear.moving, SUPPORT) if supports else linear.moving
        names |= {f"{name}.{tensor}" for tensor in tensors}
    return {name: value for name, value in module.state_dict().items() if name in names}


def fixed_supports(module: nn.Module, changing: Iterable[str]) -> str:
    """SHA-256 of the packed supports that the fit started from and the names `changing` lack."""
    names, result = set(changing), hashlib.sha256()
    for name, linear in sparse_linears(module):
        if f"{name}.{linear.first_keep}" not in names:
            result.update(name.encode())
            result.update(getattr(linear, linear.first_keep).cpu().contiguous().numpy().data)
    return result.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], stop: Callable[[str, float], None]) -> None:
    """Call `stop`, which raises, with the name of the first tensor that is not finite."""
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            stop(f"a value of {name}", math.nan)


def write_fixed(checkpoint: dict[str, Any], digest: str, module: nn.Module) -> None:
    """Note the digest of the fixed supports; raises RuntimeError where one has moved.

    digest: of the supports at the start of the fit.
    """
    check_supports(module)
    if fixed_supports(module, checkpoint["state_dict"]) != digest:
        raise RuntimeError(
            "a support has moved that the checkpoint does not hold; a callback that moves supports "
            "is an UpdateMasks"
        )
    checkpoint[DIGEST] = digest


def check_fixed(checkpoint: Mapping[str, Any], digest: str) -> None:
    """Raise ValueError unless the checkpoint was written over supports of this digest."""
    if checkpoint.get(DIGEST, digest) != digest:
        raise ValueError(
            "the checkpoint was trained on other supports than those that pruning gave this time; "
            "continue on the machine and with the versions that it was written with, or start anew "
            "with resume=null"
        )
