"""A low-rank update of the output head, which is dense and stays so: y = x (W + s B A)^T.

The head is not pruned, so its update is merged without a mask (PERP, Zimmer et al. 2023, arXiv
2312.15230).  Where the head is the token embedding too, merging parts the two: the update was
trained at the head alone, and the embedding keeps its values.  (The released code merges into the
shared tensor and so changes the embedding as well.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.blocks.plain import LinearLike, multiplies
from sparsemend.method.adapter.low_rank import kaiming_start, wider


class HeadLinear(LinearLike):
    """x W^T + scale * (x A^T) B^T with W frozen, lora_a (R, I) and lora_b (O, R) fp32."""

    def __init__(self, head: nn.Linear, start: Tensor, scale: float) -> None:
        """Take over the head's tensors; `start` (R, I) becomes A, B is zero."""
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight, self.scale = head.weight, scale
        self.register_parameter("bias", head.bias)
        start = start.to(device=head.weight.device, dtype=wider(head.weight.dtype))
        self.lora_a = nn.Parameter(start)
        self.lora_b = nn.Parameter(start.new_zeros(head.out_features, start.shape[0]))

    def effective_weight(self) -> Tensor:
        """W + scale * B A (O, I), formed in fp32 and rounded once."""
        update = self.scale * (self.lora_b @ self.lora_a)
        return (self.weight.to(update.dtype) + update).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        inner = F.linear(input, self.lora_a.to(input.dtype)) * self.scale
        return super().forward(input) + F.linear(inner, self.lora_b.to(inner.dtype))


def plain_head(model: PreTrainedModel, rank: int) -> nn.Linear:
    """The model's output head; raises ValueError where no update of this rank can be merged."""
    head = model.get_output_embeddings()
    if not multiplies(head):
        raise ValueError(
            "method.trained has lm_head, but this model has no linear output head; take it off "
            "the list"
        )
    limit = min(head.in_features, head.out_features)
    if rank > limit:
        raise ValueError(
            f"method.rank={rank} exceeds min(inputs, outputs) = {limit} of the output head; set "
            f"method.rank={limit} or lower"
        )
    return head


def attach_head(model: PreTrainedModel, *, rank: int, scale: float, seed: int) -> None:
    """Give the output head a low-rank update, which changes nothing yet."""
    head = plain_head(model, rank)
    generator = torch.Generator().manual_seed(seed)
    start = kaiming_start(rank, head.in_features, generator)
    model.set_output_embeddings(HeadLinear(head, start, scale).train(model.training))


def head_factors(model: PreTrainedModel) -> list[nn.Parameter]:
    """A and B of the output head; empty where it has no update."""
    head = model.get_output_embeddings()
    return [head.lora_a, head.lora_b] if isinstance(head, HeadLinear) else []


@torch.no_grad()
def fold_head(model: PreTrainedModel) -> None:
    """Merge the head's update; a head that was the embedding too becomes a tensor of its own."""
    head = model.get_output_embeddings()
    if not isinstance(head, HeadLinear):
        return
    tied = head.weight is model.get_input_embeddings().weight
    plain = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(head.effective_weight(), requires_grad=False)
    plain.register_parameter("bias", head.bias)
    model.set_output_embeddings(plain.train(model.training))
    if tied:
        _part(model)


def _part(model: PreTrainedModel) -> None:
    """Have the model's config say that embedding and head are two tensors."""
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = False
    names = {name for name, m in model.named_modules() if m is model.get_output_embeddings()}
    for tied in [key for key in model.all_tied_weights_keys if key.rpartition(".")[0] in names]:
        model.all_tied_weights_keys.pop(tied)
