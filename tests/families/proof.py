"""What is proved of one family: a tiny model of it goes through all that a user does.

Saved by transformers, it is loaded by the package, pruned, repaired, exported, and read by
transformers again.  Beside the package's own code there is a slow one: forwards with hooks and
a Wanda in fp64.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from support.configs import compose
from support.tiny_models import save_tiny, words
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend import api
from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.plain import multiplies
from sparsemend.blocks.walk import Calibration
from sparsemend.checkpoint.model import find_model
from sparsemend.checkpoint.supports import read_checkpoint
from sparsemend.names import MASKS
from sparsemend.preflight.checkpoint import check_checkpoint
from sparsemend.run.job import build
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.mask_file import load_masks
from sparsemend.sparse.pattern import Pattern

LEAST_SHARE = 0.95  # of a block's parameters that are linears which saw tokens
# fp32: a weight is rounded to 2^-24 of itself; a logit sums some hundred such products
LOGITS = 2e-5
# relative distance of two scores, one summed in fp32, that may change places
TIE = 1e-5
CALIBRATION, TRAIN = 8, 4  # windows

SHORT = (
    "method.max_steps=2",
    "method.windows_per_step=2",
    "method.validation_windows=2",
    "method.validate_every=2",
)
SHORT_OF = {
    "dsnot": ("method.max_cycles=3",),
    "lors": (*SHORT, "method.rank=2", "method.init_samples=2", "method.learning_rate=1e-3"),
    "seft": (
        *SHORT,
        "method.max_steps=4",
        "method.update_interval=3",
        "method.accumulation_steps=1",
        "method.budget.density=0.02",
        "method.learning_rate=1e-3",
    ),
}


class Wrong(Exception):
    """A number or a tensor that is not as promised; says which."""


@dataclass
class Proof:
    """What was measured of a family.

    share: parameters of the blocks that are linears which saw tokens, in [0, 1].  replay: largest
    distance of the walk's states from those of a forward, relative to their largest value.
    agreement: weights on which Wanda and the rule in fp64 agree; ties: those of a tied score.
    logits: largest relative distance of an export's logits, read by transformers.  state: works,
    partly (all is right, but of less than LEAST_SHARE), refused or fails; reason: in one line, why.
    """

    family: str
    model_class: str = ""
    share: float | None = None
    replay: float | None = None
    agreement: float | None = None
    ties: int = 0
    logits: float | None = None
    state: str = "fails"
    reason: str = ""
    dense: list[str] = field(default_factory=list)  # linears that stayed dense


def prove(family: str, folder: Path) -> Proof:
    """Measure one family, whose models and exports go to `folder`.

    A refusal is a ValueError of one line before anything is pruned; every other error is a failure.
    """
    proof = Proof(family)
    made = save_tiny(family, folder / "saved")
    proof.model_class = type(made).__name__
    try:
        model = load(folder / "saved")
    except (ValueError, OSError) as error:
        return refused(proof, error)
    try:
        tokens = words(CALIBRATION)
        same_logits(made, model, tokens[:2], "the loaded model")
        proof.share = share_that_sees_tokens(model, tokens)
        pruned = copy.deepcopy(model)
        try:
            api.prune(pruned, tokens, "pruner=wanda", sparsity=0.5)
        except ValueError as error:
            if any(sparse_linears(pruned)):
                raise
            return refused(proof, error)
        proof.replay = replay_error(model, tokens)
        prove_wanda(proof, model, pruned, tokens)
        for name, pruner, pattern in (
            ("dsnot", "sparsegpt", "unstructured"),
            ("lors", "wanda", "2:4"),
            ("seft", "wanda", "unstructured"),
        ):
            proof.logits = max(
                proof.logits or 0.0,
                prove_repair(copy.deepcopy(model), name, pruner, pattern, folder / name),
            )
    except Exception as error:
        proof.reason = f"{type(error).__name__}: {first_line(error)}"
        return proof
    proof.state = "works"
    if proof.share < LEAST_SHARE:
        proof.state, proof.reason = "partly", "the rest of its blocks is no linear that saw tokens"
    return proof


def prove_quickly(family: str, folder: Path) -> None:
    """The short way: load, prune 2:4, export, reload; raises Wrong where a promise is broken."""
    made = save_tiny(family, folder / "saved")
    model = load(folder / "saved")
    tokens = words(CALIBRATION)
    same_logits(made, model, tokens, "the loaded model")
    api.prune(model, tokens, "pruner=wanda", "pattern='2:4'", sparsity=0.5)
    exported = api.export(model, folder / "exported")
    check_zeros(exported)
    same_logits(model, load_plainly(exported), tokens, "the export")


def refused(proof: Proof, error: Exception) -> Proof:
    proof.state, proof.reason = "refused", first_line(error)
    if "\n" in str(error).strip():
        proof.state, proof.reason = "fails", f"a refusal of several lines: {proof.reason}"
    return proof


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder, checked and loaded as a run does it; ValueError or OSError if not."""
    cfg = compose(
        "run",
        ["model=local", f"model.path='{folder}'", "model.dtype=float32", "model.attention=null"],
    )
    check_checkpoint(cfg.model, find_model(cfg.model))
    model: PreTrainedModel = build(cfg.model).load(seed=0)
    return model


@torch.no_grad()
def same_logits(one: nn.Module, other: nn.Module, tokens: Tensor, what: str) -> float:
    """Largest distance of two models' logits, relative to the largest; Wrong above LOGITS."""
    expected = one(input_ids=tokens, use_cache=False).logits
    logits = other(input_ids=tokens, use_cache=False).logits
    if not expected.isfinite().all():
        raise Wrong(f"{what}: the model it is compared with has logits that are not finite")
    distance = float((logits - expected).abs().max() / expected.abs().max())
    if not distance <= LOGITS:
        raise Wrong(f"{what} has logits that are {distance:.1e} off")
    return distance


@contextmanager
def inputs_seen(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """The first argument of every call of some modules, by name, as a list that grows."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, positional: tuple, keyword: dict) -> None:  # type: ignore[type-arg]
            value = positional[0] if positional else keyword["hidden_states"]
            seen[name].append(value.detach().clone())

        return hook

    handles = [m.register_forward_pre_hook(note(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def last_output(block: nn.Module) -> Iterator[list[Tensor]]:
    """The hidden states that every call of a block gives, as a list that grows."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    handle = block.register_forward_hook(note)
    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def share_that_sees_tokens(model: nn.Module, tokens: Tensor) -> float:
    """Share of all block parameters that are weights of linears with tokens, or their biases."""
    _, blocks = find_blocks(model)
    linears = {n: m for n, m in blocks.named_modules() if multiplies(m)}
    with inputs_seen(linears) as seen:
        model(input_ids=tokens, use_cache=False)
    reached = {
        id(p): p.numel()
        for name, linear in linears.items()
        if any(value.numel() for value in seen[name])
        for p in linear.parameters()
    }
    everything = {id(p): p.numel() for p in blocks.parameters()}
    return sum(reached.values()) / sum(everything.values())


@torch.no_grad()
def replay_error(model: nn.Module, tokens: Tensor) -> float:
    """Largest relative distance of a walk's block inputs and last output from a forward's."""
    _, blocks = find_blocks(model)
    expected = []
    for window in tokens:
        with (
            inputs_seen({str(i): block for i, block in enumerate(blocks)}) as seen,
            last_output(blocks[-1]) as last,
        ):
            model(input_ids=window[None], use_cache=False)
        if any(len(values) != 1 for values in seen.values()):
            raise Wrong("a forward calls its blocks several times, and nothing refused it")
        expected.append([value for values in seen.values() for value in values] + last)
    worst = 0.0
    for visit in Calibration((tokens,)).walk(model):
        pairs = [(state, expected[n][visit.index]) for n, state in enumerate(visit.inputs)]
        if visit.index + 1 == visit.count:
            pairs += [(state, expected[n][-1]) for n, state in enumerate(visit.outputs())]
        for state, other in pairs:
            worst = max(worst, float((state - other).abs().max() / other.abs().max()))
    if worst > LOGITS:
        raise Wrong(f"the walk's states are {worst:.1e} off those of a forward")
    return worst


@torch.no_grad()
def prove_wanda(
    proof: Proof, model: PreTrainedModel, pruned: PreTrainedModel, tokens: Tensor
) -> None:
    """Compare the masks of Wanda at one half with the rule in fp64, block after block."""
    keeps = {name: linear.keep for name, linear in sparse_linears(pruned)}
    proof.dense = [name for name in prunable_linears(pruned) if name not in keeps]
    reference = copy.deepcopy(model)
    prefix, blocks = find_blocks(reference)
    equal = total = 0
    for index in range(len(blocks)):
        linears = {
            name: linear
            for name, linear in prunable_linears(reference).items()
            if name.startswith(f"{prefix}.{index}.")
        }
        with inputs_seen(linears) as seen:
            for window in tokens:
                reference(input_ids=window[None], use_cache=False)
        for name, linear in linears.items():
            if name not in keeps:
                continue
            wrong = against_rule(keeps[name], linear.weight, seen[name])
            if wrong is None:
                raise Wrong(f"{name} saw no token and yet it is pruned")
            equal += keeps[name].numel() - wrong[0] - wrong[1]
            proof.ties += wrong[1]
            total += keeps[name].numel()
            if wrong[0]:
                raise Wrong(f"{name}: {wrong[0]} weights of {keeps[name].numel()} against Wanda")
            linear.weight.mul_(keeps[name])
    proof.agreement = equal / total if total else 0.0
    same_logits(reference, pruned, tokens[:1], "the pruned model")


def against_rule(keep: Tensor, weight: Tensor, inputs: list[Tensor]) -> tuple[int, int] | None:
    """(weights whose mask is wrong, those of a tied score) by |W| sqrt(sum x^2), rows halved.

    None where there are no inputs.
    """
    rows = [value.double().reshape(-1, value.shape[-1]) for value in inputs if value.numel()]
    if not rows:
        return None
    norm = sum((value**2).sum(0) for value in rows)
    assert isinstance(norm, Tensor)
    score = weight.double().abs() * norm.sqrt()
    count = score.shape[1] // 2
    order = score.sort(dim=1)
    removed = torch.zeros_like(keep).scatter_(1, order.indices[:, :count], True)
    highest_removed, lowest_kept = order.values[:, count - 1, None], order.values[:, count, None]
    # a weight on the wrong side is tied where those of the right side come as close as rounding
    tied = torch.where(keep, score >= lowest_kept * (1 - TIE), score <= highest_removed * (1 + TIE))
    wrong = removed == keep
    return int((wrong & ~tied).sum()), int((wrong & tied).sum())


def prove_repair(
    model: PreTrainedModel, method: str, pruner: str, pattern: str, folder: Path
) -> float:
    """Prune, repair, export and reload; returns the relative distance of the logits."""
    tokens, train, validation = words(CALIBRATION), words(TRAIN, seed=2), words(2, seed=3)
    dense = copy.deepcopy(model)
    outcome = api.prune(model, tokens, f"pruner={pruner}", f"pattern='{pattern}'", sparsity=0.5)
    repaired = api.repair(
        model,
        f"method={method}",
        *SHORT_OF[method],
        pruned=outcome,
        train=train,
        validation=validation,
        calibration=tokens,
        dense=dense,
    )
    exported = api.export(model, folder, repaired=repaired)
    check_zeros(exported)
    check_by_command(exported, pattern)
    return same_logits(model, load_plainly(exported), tokens[:2], f"the export after {method}")


def load_plainly(folder: Path) -> PreTrainedModel:
    """What transformers alone makes of a folder, by the class that its config names."""
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def check_zeros(folder: Path) -> None:
    """Raise Wrong unless the saved tensors are zero where their masks say, and only there."""
    saved: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            saved |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    masks = load_masks(folder / MASKS)
    for name, keep in masks.items():
        tensor = saved.get(f"{name}.weight", saved.get(name))
        if tensor is None:
            raise Wrong(f"masks.safetensors has {name}, which is no tensor of the export")
        if tensor.shape != keep.shape:
            raise Wrong(f"{name} is saved as {tuple(tensor.shape)}, its mask {tuple(keep.shape)}")
        if not torch.equal(tensor != 0, keep):
            raise Wrong(f"{name}: zeros of the saved tensor are not those of its mask")
    if not masks:
        raise Wrong("masks.safetensors is empty")


def check_by_command(folder: Path, pattern: str) -> None:
    """Raise Wrong where `sparsemend-check` would complain of an export."""
    asked = None if pattern == "unstructured" else Pattern.parse(pattern)
    if failures := read_checkpoint(folder, None, asked).failures(asked):
        raise Wrong(f"sparsemend-check: {failures[0]}")
