"""Fused experts of transformers as one small module of linears per expert.

Most families share a decorator (`use_experts_implementation`) whose flags stay on the module and
say how its tensors lie; a few classes have a layout of their own.  Gate and up projections become
two linears, as checkpoints with a tensor per expert name them, so a row of a linear is a row there.

The forwards compute what the class's own eager forward computes.  Kernels that read (E, I, O)
tensors, or add a bias apart, round otherwise, by some ulps.  The outputs of a token's experts are
summed in the dtype of their products with the routing weights, as the library's grouped forward
does; where those weights are fp32 in a bf16 model, its eager forward rounds after each expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.layout.fused import FusedTensor, Unfolded


def numbers_to_call(count: int, chosen: Sequence[int]) -> list[int]:
    """The experts, of `count`, that a forward calls: those that a token chose.

    All of them while gradients are recorded, the others with no token: their gradient is then 0, as
    that of a part of a fused tensor is, and not missing, on which every rank would wait.
    """
    called = range(count) if torch.is_grad_enabled() else chosen
    return [number for number in called if number in range(count)]


class RoutedExperts(Unfolded):
    """Experts that are handed all tokens, the experts that each chose, and their weights."""

    def __init__(self, fused: nn.Module, places: Sequence[FusedTensor]) -> None:
        super().__init__(fused, places)
        self.count = places[0].experts
        self.gated = any("gate_proj" in place.linears for place in places)
        self.interleaved = any(place.interleaved for place in places)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs, (N, H).

        hidden_states (N, H); top_k_index and top_k_weights (N, K).  An index that no expert has
        stands for none.
        """
        dtype = torch.promote_types(hidden_states.dtype, top_k_weights.dtype)
        total = torch.zeros_like(hidden_states, dtype=dtype)
        for number in numbers_to_call(self.count, top_k_index.unique().tolist()):
            rank, token = torch.where((top_k_index == number).T)
            output = self.expert(number, hidden_states[token]) * top_k_weights[token, rank, None]
            total.index_add_(0, token, output.to(dtype))
        return total.to(hidden_states.dtype)

    def expert(self, number: int, tokens: Tensor) -> Tensor:
        """The output of one expert, (n, H), for tokens (n, H)."""
        expert: Any = self.get_submodule(str(number))
        up = expert.up_proj(tokens)
        inner = self.glu(expert.gate_proj(tokens), up) if self.gated else self.fused.act_fn(up)
        output: Tensor = expert.down_proj(inner)
        return self.fused.post_expert_norm(output) if self.normed else output

    @property
    def normed(self) -> bool:
        """Whether each expert's output passes a norm."""
        return bool(vars(self.fused).get("has_post_expert_norm", False))

    def glu(self, gate: Tensor, up: Tensor) -> Tensor:
        """What the class makes of gate and up, (n, I) each, which it takes as one tensor."""
        if self.interleaved:
            joined = torch.stack((gate, up), dim=-1).flatten(-2)
        else:
            joined = torch.cat((gate, up), dim=-1)
        result: Tensor = self.fused._apply_gate(joined)
        return result


class DbrxLinears(RoutedExperts):
    """DBRX: the experts of w1, v1 and w2 follow each other in rows (E * I, H)."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As of `RoutedExperts`, for hidden_states (B, T, H)."""
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        return super().forward(flat, top_k_index, top_k_weights).view_as(hidden_states)

    def glu(self, gate: Tensor, up: Tensor) -> Tensor:
        activated: Tensor = self.fused.mlp.activation_fn(gate)
        return activated * up


class Llama4Linears(RoutedExperts):
    """Llama 4: every expert is handed every token, times its routing weight, which is mostly 0."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """The output of every expert, (E * N, H); a token of zeros, which did not choose it, has 0.

        hidden_states (E * N, H), expert by expert.
        """
        by_expert = hidden_states.view(self.count, -1, hidden_states.shape[-1])
        total = torch.zeros_like(by_expert)
        reached = by_expert.any(dim=-1)
        for number in numbers_to_call(self.count, reached.any(dim=-1).nonzero().flatten().tolist()):
            (tokens,) = reached[number].nonzero(as_tuple=True)
            total[number].index_copy_(0, tokens, self.expert(number, by_expert[number, tokens]))
        return total.view_as(hidden_states)

    def glu(self, gate: Tensor, up: Tensor) -> Tensor:
        activated: Tensor = self.fused.act_fn(gate)
        return up * activated


class SortedLinears(Unfolded):
    """JetMoe: linears of equal shape, each handed its tokens of a sorted row of tokens."""

    def forward(self, inputs: Tensor, expert_size: list[int]) -> Tensor:
        """The outputs (N, O) for inputs (N, I), of which `expert_size` says how many each takes."""
        chosen = [number for number, size in enumerate(expert_size) if size]
        parts = inputs.split(expert_size)
        numbers = numbers_to_call(len(parts), chosen)
        return torch.cat([self.get_submodule(str(number))(parts[number]) for number in numbers])


DBRX = (("mlp.w1", "gate_proj", False), ("mlp.v1", "up_proj", False), ("mlp.w2", "down_proj", True))
FLAGS = {"has_gate", "has_bias", "is_transposed", "is_concatenated"}  # of the decorator


def linears_in(module: nn.Module) -> Unfolded | None:
    """The linears that `module` fuses, which takes its tensors over; None where it fuses none."""
    kind, places = _layout(module)
    held = {name for name, parameter in module.named_parameters() if parameter.ndim > 1}
    if not held or held != {place.name for place in places}:
        return None
    return kind(module, places)


def _layout(module: nn.Module) -> tuple[type[Unfolded], list[FusedTensor]]:
    """What computes with the tensors of `module`, and how they lie; no places where none lie so."""
    traits = vars(module)
    experts = int(traits.get("num_experts", 0))
    match type(module).__name__:
        case "Llama4TextExperts":
            return Llama4Linears, _by_flags(experts, is_transposed=True)
        case "Step3p7Experts":
            return RoutedExperts, _by_flags(experts)
        case "DbrxExperts":
            return DbrxLinears, [
                FusedTensor(name=name, linears=(linear,), experts=experts, transposed=transposed)
                for name, linear, transposed in DBRX
            ]
        case "JetMoeParallelExperts":
            return SortedLinears, [FusedTensor(name="weight", linears=("",), experts=experts)]
    if traits.keys() >= FLAGS:
        return RoutedExperts, _by_flags(experts, **{flag: traits[flag] for flag in FLAGS})
    return Unfolded, []


def _by_flags(
    experts: int,
    *,
    has_gate: bool = True,
    has_bias: bool = False,
    is_transposed: bool = False,
    is_concatenated: bool = True,
) -> list[FusedTensor]:
    """The tensors of a class with the decorator, by its flags, whose defaults these are."""
    up = ("gate_up_proj", ("gate_proj", "up_proj")) if has_gate else ("up_proj", ("up_proj",))
    return [
        FusedTensor(
            name=f"{name}_bias" if bias else name,
            linears=linears,
            experts=experts,
            transposed=is_transposed,
            interleaved=not is_concatenated and len(linears) > 1,
            bias=bias,
        )
        for bias in ((False, True) if has_bias else (False,))
        for name, linears in (up, ("down_proj", ("down_proj",)))
    ]
