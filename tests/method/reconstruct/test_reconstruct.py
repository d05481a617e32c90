from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import contracts
from support.families import random_model
from support.streaming import Elsewhere, brought_back, streamed
from support.tiers import slow_but_for
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.walk import Calibration
from sparsemend.instruments import LiveBytes
from sparsemend.method.base import Workbench
from sparsemend.method.reconstruct.block_fit import BlockFit, block_error
from sparsemend.method.reconstruct.reconstruct import Reconstruct
from sparsemend.prune import prune
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.sparsity_schedule.uniform import Uniform

FAMILIES = ("llama", "opt", "gpt_neox", "gemma2")
STREAMS = (("sparse", "same_inputs"), ("sparse", "dense_stream"), ("dense", "same_inputs"))


def method(*overrides: str) -> Reconstruct:
    made = contracts.method_of("reconstruct", *(f"method.{o}" for o in overrides))
    assert isinstance(made, Reconstruct)
    return made


def scene(out: Path, family: str = "llama", **bench: Any) -> tuple[PreTrainedModel, Workbench]:
    model = contracts.pruned_model(family=family)
    made = contracts.bench_for(out)
    object.__setattr__(made, "load_dense", lambda: random_model(family))
    for name, value in bench.items():
        object.__setattr__(made, name, value)
    return model, made


def block_calls(model: nn.Module, tokens: Tensor) -> list[tuple[Tensor, dict[str, Any], Tensor]]:
    """(inputs, keyword arguments, outputs) of every block in one forward of the whole model."""
    calls: list[Any] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        rest = dict(kwargs)
        state = args[0] if args else rest.pop("hidden_states")
        calls.append((state, rest, output if isinstance(output, Tensor) else output[0]))

    blocks = find_blocks(model)[1]
    handles = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("form", ["weights", "masked_lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_blocks_error_falls_and_only_kept_weights_move(
    family: str, form: str, tmp_path: Path
) -> None:
    model, bench = scene(tmp_path, family)
    before = contracts.bits(model)
    made = method(f"form={form}", "held_out=0")
    made.epochs, made.learning_rate = 4, 1e-3
    report = made.repair(model, bench)
    check_supports(model)
    assert [row["block"] for row in report["blocks"]] == [
        f"{find_blocks(model)[0]}.{i}" for i in range(3)
    ]
    for row in report["blocks"]:
        assert row["after"]["all"]["mse"] < row["before"]["all"]["mse"]
        assert row["after"]["all"]["relative"] < row["before"]["all"]["relative"]
    moved = {n for n, value in contracts.bits(model).items() if not torch.equal(value, before[n])}
    assert moved == {f"{name}.weight" for name, _ in sparse_linears(model)}


@pytest.mark.parametrize(("inputs", "targets"), STREAMS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_reported_errors_are_those_of_the_streams_asked_for(
    family: str, inputs: str, targets: str, tmp_path: Path
) -> None:
    """Against whole forwards of the finished model, whose prefix is what each block was given."""
    model, bench = scene(tmp_path, family)
    report = method(f"inputs={inputs}", f"targets={targets}").repair(model, bench)
    dense = bench.load_dense()
    tokens = bench.calibration.windows
    sparse_calls, dense_calls = block_calls(model, tokens), block_calls(dense, tokens)
    for index, row in enumerate(report["blocks"]):
        given, kwargs, output = sparse_calls[index]
        wanted = dense_calls[index][2]
        with torch.no_grad():
            if inputs == "dense":
                tuned = find_blocks(model)[1][index](dense_calls[index][0], **kwargs)
                output = tuned if isinstance(tuned, Tensor) else tuned[0]
            elif targets == "same_inputs":
                twin = find_blocks(dense)[1][index](given, **kwargs)
                wanted = twin if isinstance(twin, Tensor) else twin[0]
        expected = float(F.mse_loss(output, wanted))
        assert row["after"]["all"]["mse"] == pytest.approx(expected, rel=1e-4)


def test_one_step_of_sgd_is_the_masked_gradient_of_the_error(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    reference = contracts.pruned_model()
    rate = 0.05
    plain = ("optimizer=sgd", "weight_decay=0", "schedule=constant")
    made = method(*plain, "held_out=0", "gradient_clip=0")
    made.epochs, made.windows_per_step, made.learning_rate = 1, 8, rate
    made.repair(model, bench)
    tokens = bench.calibration.windows
    given, kwargs, _ = block_calls(reference, tokens)[0]
    block, twin = find_blocks(reference)[1][0], find_blocks(bench.load_dense())[1][0]
    F.mse_loss(block(given, **kwargs), twin(given, **kwargs)).backward()
    tuned = find_blocks(model)[1][0]
    for name, linear in sparse_linears(block):
        expected = linear.weight - rate * linear.weight.grad * linear.keep
        # windows are summed in another order: fp32 rounding of a gradient, times the rate
        torch.testing.assert_close(tuned.get_submodule(name).weight, expected, rtol=1e-5, atol=1e-7)


def test_the_relative_error_is_the_mean_over_channels_of_relative_squares() -> None:
    """Channel 0: (1 + 4) / (4 + 16); channel 1: 9 / 9; channel 2, all zero in Y, is left out."""
    y = torch.tensor([[[1.0, 0.0, 1.0], [2.0, 3.0, 0.0]]])
    target = torch.tensor([[[2.0, 3.0, 0.0], [4.0, 3.0, 0.0]]])
    visit = next(Calibration([torch.tensor([[3, 4]])]).walk(random_model("llama")))
    visit.__dict__["output"] = lambda batch: y
    error = block_error(visit, [target])
    assert error is not None
    assert error.relative == pytest.approx((5 / 20 + 9 / 18) / 2)
    assert error.mse == pytest.approx((1 + 9 + 1 + 4) / 6)
    assert block_error(visit, [target], first=1) is None


def test_clipping_acts_on_unscaled_gradients(tmp_path: Path) -> None:
    """Under a loss scale of 65536 one clipped SGD step still has length rate * clip."""
    model, bench = scene(tmp_path)
    before = contracts.bits(model)
    plain = ("optimizer=sgd", "weight_decay=0", "schedule=constant")
    made = method(*plain, "held_out=0", "precision=16-mixed")
    made.epochs, made.windows_per_step, made.learning_rate, made.gradient_clip = 1, 8, 0.5, 1e-2
    made.repair(model, bench)
    prefix = find_blocks(model)[0]
    for index in range(3):
        names = [n for n in before if n.startswith(f"{prefix}.{index}.") and n.endswith("weight")]
        moved = [model.state_dict()[n].double() - before[n].double() for n in names]
        length = torch.stack([m.square().sum() for m in moved]).sum().sqrt()
        # each weight's sum is rounded to fp32, 1e-7 of weights of size 1
        assert float(length) == pytest.approx(0.5 * 1e-2, rel=1e-2)


def test_a_block_stops_early_and_is_not_left_worse(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    made = method("epochs=20", "held_out=0.25", "patience=2")
    made.epochs, made.learning_rate, made.gradient_clip = 20, 1.0, 0.0
    report = made.repair(model, bench)
    full = 20 * 3  # of 4 batches of two one is held out
    for row in report["blocks"]:
        assert row["stopped_early"]
        assert row["steps"] < full
        assert row["after"]["held_out"]["mse"] <= row["before"]["held_out"]["mse"]


def test_a_block_stops_after_so_many_worse_epochs_with_the_values_of_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out losses before and after every epoch: the second epoch is the best, two are worse."""
    losses, values, restored = iter([5.0, 6.0, 3.0, 3.0, 4.0, 1.0]), iter(range(6)), []
    monkeypatch.setattr(BlockFit, "held_out_loss", lambda self: next(losses))
    monkeypatch.setattr(BlockFit, "values", lambda self: next(values))
    monkeypatch.setattr(BlockFit, "restore", lambda self, best: restored.append(best))
    model, bench = scene(tmp_path)
    made = method("held_out=0.25", "patience=2")
    made.epochs = 5
    visit = next(replace(bench.calibration, together=2).walk(model))
    made.attach(visit.block, 0)
    made.free_trainable(visit.block)
    fit = BlockFit(visit, visit.outputs(), made, seed=0, split=made.split(bench)).run()
    assert fit.stopped_early
    assert fit.steps == 4 * 3  # of eight windows, two a step, two are held out
    assert restored == [2]


def test_without_held_out_windows_every_step_is_taken(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    made = method("held_out=0")
    made.epochs = 3
    report = made.repair(model, bench)
    assert report["steps"] == 3 * 4 * 3
    assert report["held_out/relative_error"] is None
    assert "held_out" not in report["blocks"][0]["after"]


@pytest.mark.parametrize("form", ["weights", "masked_lora"])
def test_biases_and_norms_of_the_block_train_where_asked(form: str, tmp_path: Path) -> None:
    model, bench = scene(tmp_path, "opt")
    before = contracts.bits(model)
    made = method(f"form={form}", "biases=true", "norms=true", "held_out=0")
    made.learning_rate = 1e-3
    report = made.repair(model, bench)
    prefix = find_blocks(model)[0]
    moved = {n for n, value in contracts.bits(model).items() if not torch.equal(value, before[n])}
    inside = {n for n in before if n.startswith(prefix) and "packed_keep" not in n}
    # keys' biases shift every score of a row alike: softmax does not see them
    assert inside - moved <= {f"{prefix}.{i}.self_attn.k_proj.bias" for i in range(3)}
    assert moved <= inside
    counts = {
        "weights": sum(int(linear.keep.sum()) for _, linear in sparse_linears(model)),
        "masked_lora": sum(2 * sum(linear.weight.shape) for _, linear in sparse_linears(model)),
    }
    vectors = sum(before[n].numel() for n in inside if before[n].ndim == 1)
    assert report["trained_parameters"] == counts[form] + vectors


def test_decay_shrinks_norms_only_where_all_decay(tmp_path: Path) -> None:
    norms = {}
    for decay in ("matrices", "all"):
        model, bench = scene(tmp_path / decay)
        made = method("norms=true", "held_out=0", "epochs=1", f"decay={decay}", "schedule=constant")
        made.weight_decay, made.learning_rate, made.betas = 0.5, 1e-2, [0.0, 0.999]
        made.repair(model, bench)
        norms[decay] = torch.cat([p for n, p in model.named_parameters() if "layernorm" in n])
    assert norms["all"].mean() < norms["matrices"].mean() - 1e-3


@pytest.mark.parametrize("form", ["weights", "masked_lora"])
@pytest.mark.parametrize("family", slow_but_for(["llama", "opt"], ["opt"]))
def test_a_bf16_model_trains_in_fp32_and_stays_as_it_was_made(
    family: str, form: str, tmp_path: Path
) -> None:
    model, bench = scene(tmp_path, family)
    object.__setattr__(bench, "load_dense", lambda: random_model(family).to(torch.bfloat16))
    model.to(torch.bfloat16)
    before = contracts.bits(model)
    made = method(f"form={form}", "biases=true", "norms=true", "held_out=0")
    made.epochs, made.learning_rate = 4, 1e-3
    report = made.repair(model, bench)
    assert {name: value.dtype for name, value in contracts.bits(model).items()} == {
        name: value.dtype for name, value in before.items()
    }
    check_supports(model)
    for row in report["blocks"]:
        assert row["after"]["all"]["mse"] < row["before"]["all"]["mse"]


@pytest.mark.slow  # a bf16 model that trains in fp32 is tested here
def test_fp32_copies_gather_steps_that_bf16_would_round_away(tmp_path: Path) -> None:
    """Every step is far below the spacing of bf16 beside most weights."""
    model, bench = scene(tmp_path)
    object.__setattr__(bench, "load_dense", lambda: random_model("llama").to(torch.bfloat16))
    model.to(torch.bfloat16)
    name, linear = next(iter(sparse_linears(model)))
    before = linear.weight.clone()
    made = method("held_out=0", "schedule=constant", "weight_decay=0")
    made.epochs, made.learning_rate = 40, 1e-4  # 160 steps of at most about 1e-4
    made.repair(model, bench)
    after = model.get_submodule(name).weight
    moved = (after.float() - before.float()).abs()
    spacing = before.float().abs() * 2.0**-8
    gathered = (moved > 0) & (spacing / 2 > 2 * 1e-4)
    assert int(gathered.sum()) > 20


STREAMED = [(*streams, form) for streams in STREAMS for form in ("weights", "masked_lora")]


@pytest.mark.parametrize(("inputs", "targets", "form"), slow_but_for(STREAMED, STREAMED[-1:]))
def test_streamed_blocks_are_tuned_to_the_same_bits(
    inputs: str, targets: str, form: str, tmp_path: Path
) -> None:
    made = method(f"inputs={inputs}", f"targets={targets}", f"form={form}", "epochs=1")
    whole, bench = scene(tmp_path / "whole", "gemma2")
    expected = made.repair(whole, bench)
    walked, bench = scene(tmp_path / "walked", "gemma2")
    dense = streamed(bench.load_dense())
    object.__setattr__(bench, "load_dense", lambda: dense)
    report = made.repair(streamed(walked), bench)
    for one, other in zip(expected["blocks"], report["blocks"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    tuned, source = residency_of(walked), residency_of(dense)
    assert isinstance(tuned, Elsewhere)
    assert isinstance(source, Elsewhere)
    assert tuned.most == source.most == 1
    assert not any(changes for _, changes in source.visits)  # it may not be written
    contracts.assert_same_bits(contracts.bits(brought_back(walked)), contracts.bits(whole))


class Killed(Exception):
    pass


def test_windows_at_once_change_rounding_alone(tmp_path: Path) -> None:
    made = method("epochs=1", "held_out=0.25", "windows_per_step=4", "optimizer=sgd")
    whole, bench = scene(tmp_path / "whole", "gemma2")
    expected = made.repair(whole, bench)
    for micro_batch in (3, 1):  # 2 divides a step's 4 windows
        split, bench = scene(tmp_path / str(micro_batch), "gemma2", micro_batch=micro_batch)
        report = made.repair(split, bench)
        for one, other in zip(expected["blocks"], report["blocks"], strict=True):
            assert one["steps"] == other["steps"]
            for which in ("all", "held_out"):
                # fp32 sums in another order
                wanted = pytest.approx(one["after"][which]["mse"], rel=1e-4)
                assert other["after"][which]["mse"] == wanted


@pytest.mark.parametrize("form", ["weights", "masked_lora"])
def test_a_run_cut_off_in_block_two_ends_with_the_same_bits(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bench = scene(tmp_path / "whole")
    expected = method(f"form={form}").repair(whole, bench)
    run = BlockFit.run

    def cut(self: BlockFit) -> Any:
        if self.visit.index == 1:
            raise Killed
        return run(self)

    broken, bench = scene(tmp_path / "broken")
    monkeypatch.setattr(BlockFit, "run", cut)
    with pytest.raises(Killed):
        method(f"form={form}").repair(broken, bench)
    assert [path.name for path in bench.parts.iterdir()] == ["block_0.safetensors"]

    fitted = []

    def noted(self: BlockFit) -> Any:
        fitted.append(self.visit.index)
        return run(self)

    monkeypatch.setattr(BlockFit, "run", noted)
    again = contracts.pruned_model()
    report = method(f"form={form}").repair(again, bench)
    assert fitted == [1, 2]
    contracts.assert_same_bits(contracts.bits(whole), contracts.bits(again))
    for one, other in zip(expected["blocks"], report["blocks"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.slow  # three runs each; that of a model in memory is above
@pytest.mark.parametrize(("inputs", "targets"), STREAMS)
def test_a_streamed_run_cut_off_in_block_two_ends_with_the_same_bits(
    inputs: str, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = method(f"inputs={inputs}", f"targets={targets}", "epochs=1")
    whole, bench = scene(tmp_path / "whole")
    expected = made.repair(whole, bench)
    run, fitted = BlockFit.run, list[int]()

    def cut(self: BlockFit) -> Any:
        fitted.append(self.visit.index)
        if fitted == [0, 1]:
            raise Killed
        return run(self)

    monkeypatch.setattr(BlockFit, "run", cut)
    broken, bench = scene(tmp_path / "broken")
    residency = residency_of(streamed(broken))
    assert isinstance(residency, Elsewhere)
    with pytest.raises(Killed):
        made.repair(broken, bench)
    residency.finished = 1
    report = made.repair(broken, bench)
    assert fitted == [0, 1, 1, 2]
    assert not bench.parts.exists()  # a second copy of every block
    contracts.assert_same_bits(contracts.bits(brought_back(broken)), contracts.bits(whole))
    for one, other in zip(expected["blocks"], report["blocks"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_finished_block_of_another_support_is_refused(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    method().repair(model, bench)
    other = contracts.pruned_model("2:4")
    with pytest.raises(ValueError, match=r"block_0\.safetensors holds another support of "):
        method().repair(other, bench)


def deep(layers: int, tmp_path: Path) -> tuple[PreTrainedModel, Workbench]:
    """A pruned model whose blocks outweigh its activations, and its bench."""

    def dense() -> PreTrainedModel:
        return random_model("llama", num_hidden_layers=layers, intermediate_size=512)

    model, bench = dense(), contracts.bench_for(tmp_path / str(layers))
    object.__setattr__(bench, "load_dense", dense)
    allocation = Uniform().allocate(model, Calibration(()), contracts.SPARSITY, bench.pattern)
    prune(model, bench.calibration, Wanda(variant=False), allocation, bench.pattern)
    return model, bench


@pytest.mark.slow  # measures memory of deep models
@pytest.mark.parametrize(
    ("inputs", "targets", "form"),
    slow_but_for(
        [(*streams, form) for streams in STREAMS for form in ("weights", "masked_lora")],
        [(*STREAMS[0], "weights"), (*STREAMS[2], "masked_lora")],
    ),
)
def test_what_it_needs_beside_the_models_does_not_grow_with_depth(
    inputs: str, targets: str, form: str, tmp_path: Path
) -> None:
    """Optimizer state, gradients and the best values are those of one block."""
    peaks, block_bytes = {}, 0
    for layers in (2, 6):
        model, bench = deep(layers, tmp_path)
        dense = bench.load_dense()
        object.__setattr__(bench, "load_dense", lambda dense=dense: dense)
        block_bytes = sum(p.nbytes for p in find_blocks(model)[1][0].parameters())
        made = method(f"form={form}", f"inputs={inputs}", f"targets={targets}")
        with LiveBytes(
            [t for m in (model, dense) for t in (*m.parameters(), *m.buffers())]
        ) as live:
            start = live.live
            made.repair(model, bench)
        peaks[layers] = live.peak - start
    assert peaks[6] <= 1.02 * peaks[2]
    # per weight a gradient, two moments, the values of the best epoch and of the one just seen
    assert peaks[6] < 7 * block_bytes


@pytest.mark.slow  # measures memory of deep models
@pytest.mark.parametrize(("inputs", "targets", "form"), [STREAMED[0], STREAMED[3], STREAMED[5]])
def test_streamed_blocks_need_no_more_memory_in_a_deeper_model(
    inputs: str, targets: str, form: str, tmp_path: Path
) -> None:
    def peak(layers: int) -> int:
        model, bench = deep(layers, tmp_path)
        dense = streamed(bench.load_dense())
        object.__setattr__(bench, "load_dense", lambda: dense)
        streamed(model)
        made = method(f"form={form}", f"inputs={inputs}", f"targets={targets}", "epochs=1")
        with LiveBytes([]) as live:
            made.repair(model, bench)
        return live.peak

    assert peak(6) <= 1.02 * peak(2)


class Whereabouts:
    """Which blocks are on the device `cpu:0`, by the moves that are asked for."""

    def __init__(self, *models: nn.Module) -> None:
        self.names = {
            id(block): (number, index)
            for number, model in enumerate(models)
            for index, block in enumerate(find_blocks(model)[1])
        }
        self.there: set[tuple[int, int]] = set()
        self.seen: list[set[tuple[int, int]]] = []

    def watch(self, to: Callable[..., Any]) -> Callable[..., Any]:
        def moved(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if id(module) in self.names and args and isinstance(args[0], torch.device):
                change = self.there.add if args[0].index == 0 else self.there.discard
                change(self.names[id(module)])
                self.seen.append(set(self.there))
            elif args and args[0] == torch.device("cpu", 0):
                raise AssertionError(f"{type(module).__name__} was moved whole")
            return to(module, *args, **kwargs)

        return moved


@pytest.mark.parametrize(("inputs", "targets"), STREAMS)
def test_with_offload_one_pair_of_blocks_is_on_the_device(
    inputs: str, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bench = scene(tmp_path)
    calibration = replace(bench.calibration, device=torch.device("cpu", 0), offload=True)
    object.__setattr__(bench, "calibration", calibration)
    dense = bench.load_dense()
    object.__setattr__(bench, "load_dense", lambda: dense)
    spy = Whereabouts(model, dense)
    monkeypatch.setattr(nn.Module, "to", spy.watch(nn.Module.to))
    method(f"inputs={inputs}", f"targets={targets}").repair(model, bench)
    assert max(len(there) for there in spy.seen) == 2
    pairs = [there for there in spy.seen if len(there) == 2]
    for index in range(3):
        assert {(0, index), (1, index)} in pairs
    assert spy.there == set()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("form=dense",), r"method\.form 'dense' is not one of: weights, masked_lora"),
        (("inputs=both",), r"method\.inputs 'both' is not one of: sparse, dense"),
        (("targets=none",), r"method\.targets 'none' is not one of"),
        (("held_out=1",), r"method\.held_out 1 is not in \[0, 1\)"),
        (("precision=bf16-true",), r"use method\.precision=32-true"),
        (("patience=0",), r"method\.patience 0 is below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: tuple[str, ...], message: str) -> None:
    # hydra wraps what a constructor raises
    with pytest.raises(Exception, match=message):
        method(*overrides)


def test_too_few_windows_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    made = method()
    made.windows_per_step = 8  # all of them: nothing would be left to hold out
    with pytest.raises(ValueError, match=r"at least data\.calibration_samples=9"):
        made.repair(model, bench)


def test_a_loss_that_is_not_finite_names_the_block(tmp_path: Path) -> None:
    model, bench = scene(tmp_path)
    made = method("optimizer=sgd", "gradient_clip=0", "schedule=constant")
    made.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match=r"model\.layers\.0 is (nan|inf).*lower method"):
        made.repair(model, bench)
