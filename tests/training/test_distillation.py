import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model, windows
from support.families import random_model
from support.tiers import slow_but_for
from torch import Tensor
from torch.nn import functional as F

from sparsemend.data.base import UNLABELLED
from sparsemend.method.trained import TrainedRepair
from sparsemend.training.distillation import Distillation, Teacher, divergence, hidden_distance
from sparsemend.training.logits import next_token_loss
from sparsemend.training.objective import NextToken

OFF: dict[str, Any] = {
    "weight": 0.0,
    "temperature": 2.0,
    "hidden_weight": 0.0,
    "teacher_dtype": None,
    "teacher_device": None,
}
DENSE = partial(random_model, "llama")
CPU = torch.device("cpu")


def teacher(load: Any = DENSE, **settings: Any) -> Teacher:
    made = Teacher(Distillation(**{**OFF, **settings}), load)
    made.prepare(CPU)
    return made


def method(*overrides: str, name: str = "masked_lora") -> TrainedRepair:
    made = method_of(name, *(f"method.{o}" for o in overrides))
    assert isinstance(made, TrainedRepair)
    return made


def labelled() -> tuple[Tensor, Tensor]:
    """Windows (4, 16) with a different number of labels each."""
    tokens = windows(4, seed=11)
    labels = tokens.clone()
    for row, prompt in enumerate((0, 3, 9, 14)):
        labels[row, :prompt] = UNLABELLED
    return tokens, labels


def test_the_divergence_of_two_tokens_by_hand() -> None:
    """At temperature 2 logits (0, 2 ln 3) are (1/4, 3/4) and (0, 0) are (1/2, 1/2)."""
    taught = torch.tensor([[0.0, 2 * math.log(3)]])
    expected = 4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert float(divergence(torch.zeros(1, 2), taught, 2.0)) == pytest.approx(expected, rel=1e-6)
    assert float(divergence(taught, taught, 2.0)) == pytest.approx(0, abs=1e-7)


def test_the_hidden_distance_by_hand() -> None:
    """|(1, 2) - (1, 0)|^2 / 1 = 4 at position 0 of one block, 0 of the other; position 1 is out."""
    taught = torch.tensor([[[1.0, 0.0], [5.0, 5.0], [0.0, 0.0]]])
    own = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    counts = torch.tensor([[True, False]])
    assert float(hidden_distance([own, own, taught], [own, taught, taught], counts)) == 2.0


def test_a_state_of_exactly_zero_has_no_distance_and_no_gradient() -> None:
    taught = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    own = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [9.0, 9.0]]], requires_grad=True)
    distance = hidden_distance([own, own], [own, taught], torch.tensor([[True, True]]))
    distance.backward()
    assert float(distance.detach()) == 2.0  # 4 of the second position, of two
    assert own.grad is not None
    assert own.grad[0].tolist() == [[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]


def test_the_gradient_of_the_divergence_keeps_its_size_as_the_temperature_grows() -> None:
    """t^2 KL tends to half the squared distance of centred logits over V (Hinton, Sec. 2.1)."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(3, 7, generator=generator, requires_grad=True)
    taught = torch.randn(3, 7, generator=generator)
    divergence(own, taught, 1e3).backward()
    difference = own - taught
    expected = (difference - difference.mean(dim=1, keepdim=True)) / 7 / 3
    assert own.grad is not None
    torch.testing.assert_close(own.grad, expected.detach(), rtol=2e-2, atol=1e-4)


def test_the_loss_is_the_stated_sum_of_its_parts() -> None:
    """Against whole forwards and torch's own divergence, in a loop over labelled positions."""
    model, (tokens, labels) = pruned_model(), labelled()
    loss = teacher(weight=0.3, temperature=3.0, hidden_weight=0.7)(model, tokens, labels)
    with torch.no_grad():
        own = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        taught = DENSE()(input_ids=tokens, use_cache=False, output_hidden_states=True)
    kl, distance, count = 0.0, 0.0, 0
    for row in range(4):
        for position in range(15):
            if labels[row, position + 1] == UNLABELLED:
                continue
            count += 1
            ours = F.log_softmax(own.logits[row, position].double() / 3, dim=0)
            theirs = F.softmax(taught.logits[row, position].double() / 3, dim=0)
            kl += 9 * float(F.kl_div(ours, theirs, reduction="sum"))
            for s, d in zip(own.hidden_states[1:], taught.hidden_states[1:], strict=True):
                s, d = s[row, position].double(), d[row, position].double()
                distance += float((s - d).square().sum() / d.square().sum()) / 3
    # logarithms near 5 have 5e-7 of rounding in fp32, which the temperature squared multiplies
    expected = pytest.approx(kl / count, abs=9 * 5e-7)
    assert float(loss.parts["train/distillation"]) == expected
    assert float(loss.parts["train/hidden_distance"]) == pytest.approx(distance / count, rel=1e-5)
    cross_entropy = float(next_token_loss(model, tokens, labels))
    expected = 0.7 * cross_entropy + 0.3 * kl / count + 0.7 * distance / count
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)


def test_the_dense_model_has_nothing_to_learn_from_itself() -> None:
    tokens, labels = labelled()
    loss = teacher(weight=1.0, hidden_weight=1.0)(DENSE(), tokens, labels)
    assert float(loss.total) == pytest.approx(0, abs=1e-6)


def test_it_adds_up_over_micro_batches_by_their_labels() -> None:
    """So accumulation over processes sees one loss, however windows are shared out."""
    model, (tokens, labels) = pruned_model(), labelled()
    objective = teacher(weight=0.5, hidden_weight=1.0)
    whole = float(objective(model, tokens, labels).total)
    counts = [int((labels[i : i + 1, 1:] != UNLABELLED).sum()) for i in range(4)]
    rows = [
        float(objective(model, tokens[i : i + 1], labels[i : i + 1]).total) * count
        for i, count in enumerate(counts)
    ]
    assert sum(rows) / sum(counts) == pytest.approx(whole, rel=1e-5)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model, (tokens, labels) = pruned_model().train(), labelled()
    objective = teacher(weight=0.5, hidden_weight=1.0)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        objective(model, tokens, labels).total.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_while_both_weights_are_zero_no_dense_model_is_loaded(tmp_path: Path) -> None:
    bench = bench_for(tmp_path)
    object.__setattr__(bench, "load_dense", lambda: pytest.fail("loaded"))
    made = method()
    assert isinstance(made.objective(bench), NextToken)
    assert "teacher" not in made.repair(pruned_model(), bench)


@pytest.mark.parametrize("term", slow_but_for(["weight=1.0", "hidden_weight=10.0"], ["weight=1.0"]))
def test_a_distilled_model_ends_nearer_to_the_dense_one(term: str, tmp_path: Path) -> None:
    """In what was distilled, on windows that were not trained on, than with cross-entropy alone."""
    judge = teacher(weight=1.0, hidden_weight=1.0)
    names = {"weight=1.0": "train/distillation", "hidden_weight=10.0": "train/hidden_distance"}
    found = {}
    for label, knobs in (("plain", ()), ("distilled", (f"distill.{term}",))):
        model, made = pruned_model(), method(*knobs, name="masked_full")
        made.max_steps = 40
        made.repair(model, bench_for(tmp_path / label))
        tokens = windows(4, seed=12)
        found[label] = float(judge(model, tokens, tokens).parts[names[term]])
    assert found["distilled"] < 0.9 * found["plain"]


def test_the_teacher_is_in_no_checkpoint_and_its_cost_is_reported(tmp_path: Path) -> None:
    sizes = {}
    for label, knobs in (("plain", ()), ("distilled", ("distill.weight=0.5",))):
        report = method(*knobs).repair(pruned_model(), bench_for(tmp_path / label))
        checkpoint = torch.load(tmp_path / label / "checkpoints" / "last.ckpt", weights_only=False)
        sizes[label] = set(checkpoint["state_dict"])
    assert sizes["plain"] == sizes["distilled"]
    bytes_of_model = sum(t.nbytes for t in (*DENSE().parameters(), *DENSE().buffers()))
    assert report["teacher"] == {"dtype": "float32", "device": "cpu", "bytes": bytes_of_model}


def test_a_teacher_of_lower_precision_takes_half_and_says_nearly_the_same() -> None:
    model, (tokens, labels) = pruned_model(), labelled()
    full = teacher(weight=1.0, hidden_weight=1.0)
    half = teacher(weight=1.0, hidden_weight=1.0, teacher_dtype="bfloat16")
    assert half.report()["teacher"]["bytes"] < 0.51 * full.report()["teacher"]["bytes"]
    expected = float(full(model, tokens, labels).total)
    assert float(half(model, tokens, labels).total) == pytest.approx(expected, rel=0.05)
    with torch.autocast("cpu", torch.bfloat16):  # of the student: the teacher keeps its own dtype
        mixed = full(model, tokens, labels)
        assert full._predictions(tokens).output.logits.dtype == torch.float32
    assert mixed.total.dtype == torch.float32


def test_a_teacher_of_lower_precision_keeps_its_rotary_frequencies() -> None:
    """In bf16 angles would be off by whole turns at positions in the thousands."""
    half, full = teacher(weight=1.0, teacher_dtype="bfloat16").model, DENSE()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    frequencies = [name for name, _ in full.named_buffers() if "inv_freq" in name]
    assert frequencies
    for name in frequencies:
        assert torch.equal(half.get_buffer(name), full.get_buffer(name))


def test_loading_the_teacher_draws_nothing_from_the_fits_randomness() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    teacher(weight=0.5)
    assert torch.equal(torch.rand(2), expected)


def test_another_process_is_sent_the_way_to_the_teacher_not_its_weights() -> None:
    loaded = teacher(weight=0.5)
    sent = copy.copy(loaded)
    assert sent._model is None
    with pytest.raises(RuntimeError, match="call prepare"):
        sent(pruned_model(), *labelled())
    sent.prepare(CPU)
    model, given = pruned_model(), labelled()
    assert float(sent(model, *given).total) == float(loaded(model, *given).total)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight": 1.5}, r"method\.distill\.weight 1\.5 is not in \[0, 1\]"),
        ({"hidden_weight": -1.0}, r"method\.distill\.hidden_weight -1\.0 is below 0"),
        ({"temperature": 0.0}, r"method\.distill\.temperature 0\.0 is not above 0"),
        ({"teacher_dtype": "int8"}, r"'int8' is not one of: null, float32, bfloat16, float16"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**{**OFF, **setting})


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="that device is there")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_device=cuda:7, but torch sees \d CUDA"):
        teacher(weight=0.5, teacher_device="cuda:7")


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "gemma2"])
def test_every_family_has_hidden_states_to_learn_from(family: str) -> None:
    model = pruned_model(family=family)
    tokens = windows(2)
    loss = teacher(partial(random_model, family), weight=0.5, hidden_weight=1.0)
    parts = loss(model, tokens, tokens).parts
    assert 0 < float(parts["train/hidden_distance"]) < 10
