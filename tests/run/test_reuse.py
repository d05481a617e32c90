"""A pruned model from the cache is the one that pruning would give, bit for bit."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.configs import compose
from support.families import FAMILIES, random_model
from support.schedules import module_of, schedule_of

from sparsemend.blocks import statistics as statistics_module
from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.states import ON_DEVICE
from sparsemend.blocks.statistics import InputNorm
from sparsemend.blocks.walk import Calibration
from sparsemend.config.values import digest
from sparsemend.evaluation.base import EvaluationInput
from sparsemend.prune import check_room, dense_statistics, observe_first, prune, prune_observed
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.ria import RIA
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.cache import Cache, Content
from sparsemend.run.digests import model_digest, with_files
from sparsemend.run.evaluate import _once
from sparsemend.run.keys import Keys
from sparsemend.run.memory import Memory
from sparsemend.run.prune import PruningRules, measuring_of
from sparsemend.run.pruned import pruned_content, restore_
from sparsemend.run.reuse import Reuse
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.sparsity_schedule.uniform import Uniform

PATTERN = Pattern.parse("unstructured")
WANDA = Wanda(variant=False)


def rates(model: torch.nn.Module, rate: float = 0.5) -> Allocation:
    sizes = {name: linear.weight.numel() for name, linear in prunable_linears(model).items()}
    return Allocation(dict.fromkeys(sizes, rate), sizes, rate, scores={"mean": rate})


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = bits(one), bits(other)
    assert left.keys() == right.keys()
    assert [n for n in left if not torch.equal(left[n], right[n])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_restored_model_has_the_pruned_models_bits(
    family: str, dtype: torch.dtype, tokens: torch.Tensor
) -> None:
    model, fresh = random_model(family).to(dtype), random_model(family).to(dtype)
    prune(model, Calibration(tokens.split(2)), WANDA, rates(model), PATTERN)
    _, linear = next(sparse_linears(model))
    linear.weight.data[0] = 0  # kept weights that are zero stay kept
    content = pruned_content(model, rates(model))
    assert Allocation(**content.values) == rates(fresh)
    restore_(fresh, content.tensors)
    assert_same_bits(model, fresh)
    assert all(type(fresh.get_submodule(n)) is SparseLinear for n in prunable_linears(fresh))
    kept = sum(int(m.keep.sum()) for _, m in sparse_linears(model))
    assert sum(t.numel() for n, t in content.tensors.items() if n.endswith(".kept")) == kept


def test_a_models_digest_sees_every_weight_and_the_configuration() -> None:
    seen = {model_digest(random_model("llama"))}
    assert model_digest(random_model("llama")) in seen
    one = random_model("llama")
    one.model.norm.weight.data[0] = torch.nextafter(one.model.norm.weight[0], torch.tensor(2.0))
    other = random_model("llama")
    other.config.rms_norm_eps *= 2
    seen |= {model_digest(one), model_digest(other), model_digest(random_model("llama").bfloat16())}
    assert len(seen) == 4


def test_a_file_named_in_the_configuration_counts_with_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rates.csv"
    file.write_text("0,0.5")
    before = with_files({"path": str(file), "level": ["block"]})
    file.write_text("0,0.6")
    assert with_files({"path": str(file), "level": ["block"]}) != before
    assert with_files({"level": "block"}) == {"level": "block"}


@pytest.mark.parametrize("pruner", [WANDA, SparseGPT(block_size=8, damping=0.01)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_first_blocks_share_serves_several_prunings(
    family: str, pruner: Pruner, tokens: torch.Tensor
) -> None:
    dense = random_model(family)
    first = observe_first(dense, Calibration(tokens.split(2)), pruner)
    assert_same_bits(dense, random_model(family))
    for rate in (0.3, 0.7, 0.3):
        plain, quick = random_model(family), random_model(family)
        prune(plain, Calibration(tokens.split(2)), pruner, rates(plain, rate), PATTERN)
        prune(quick, Calibration(tokens.split(2)), pruner, rates(quick, rate), PATTERN, first=first)
        assert_same_bits(plain, quick)


def test_linears_of_one_input_share_what_is_computed_of_dense_statistics(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four factors per block: of q, k and v; of gate and up; of o; of down."""
    computed = []
    factor = statistics_module._inverse_factor
    monkeypatch.setattr(
        statistics_module, "_inverse_factor", lambda *a: computed.append(0) or factor(*a)
    )
    pruner, model = SparseGPT(block_size=8, damping=0.01), random_model("llama")
    seen = dense_statistics(model, Calibration(tokens.split(2)), pruner)
    for rate in (0.7, 0.4):  # a factor knows no rate
        pruned = random_model("llama")
        prune_observed(pruned, Calibration(()), seen, pruner, rates(pruned, rate), PATTERN)
    assert len(computed) == 4 * 3
    assert sum({id(each): each.bytes for each in seen.values()}.values()) == 3 * 22_224


def test_dense_statistics_that_do_not_fit_are_refused_after_the_first_block(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors of 3 x 32^2 + 48^2 numbers in fp32, 5 bytes an input: 22,224 bytes a block."""
    pruner, batches = SparseGPT(block_size=8, damping=0.01), tokens.split(2)
    monkeypatch.setattr("sparsemend.blocks.device_memory.available_bytes", lambda: 2 * 22_224)
    assert dense_statistics(random_model("llama"), Calibration(batches), pruner)
    monkeypatch.setattr("sparsemend.blocks.device_memory.available_bytes", lambda: 2 * 22_224 - 1)
    with pytest.raises(ValueError, match=r"all 3 blocks, 6.67e-05 GB, .* statistics=exact"):
        dense_statistics(random_model("llama"), Calibration(batches), pruner)


def test_dense_statistics_wait_on_the_host_where_blocks_do(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.device] = []
    monkeypatch.setattr(InputNorm, "to_", lambda statistic, place: moved.append(place))
    batches = Calibration(tokens.split(2), device=torch.device("cpu"), offload=True)
    seen = dense_statistics(random_model("llama"), batches, WANDA)
    # those of linears that share an input are one
    assert moved == [torch.device("cpu")] * len({id(statistic) for statistic in seen.values()})


def test_memory_that_torch_keeps_on_a_gpu_is_there_for_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As much as 40 of 100 bytes, 30 of which are another process's."""
    for name, size in (("memory_reserved", 60), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    place = torch.device("cuda", 0)
    check_room(25, 3, place)
    with pytest.raises(ValueError, match=r"the GPU has 7\.6e-08 GB .* hardware\.offload=true"):
        check_room(26, 3, place)


@pytest.mark.parametrize("pruner", [WANDA, SparseGPT(block_size=8, damping=0.01)])
def test_dense_statistics_agree_with_the_protocol_in_the_first_block_alone(
    pruner: Pruner, tokens: torch.Tensor
) -> None:
    exact = random_model("llama")
    prune(exact, Calibration(tokens.split(2)), pruner, rates(exact, 0.7), PATTERN)
    statistics = dense_statistics(random_model("llama"), Calibration(tokens.split(2)), pruner)
    models = [random_model("llama") for _ in range(2)]
    for model in models:
        prune_observed(model, Calibration(()), statistics, pruner, rates(model, 0.7), PATTERN)
    assert_same_bits(*models)
    keeps = {name: linear.keep for name, linear in sparse_linears(exact)}
    same = {n: torch.equal(keeps[n], m.keep) for n, m in sparse_linears(models[0])}
    assert all(equal for name, equal in same.items() if ".0." in name)
    assert not all(same.values())


class Spy:
    """A cache that computes and notes what its keys are made of."""

    def __init__(self) -> None:
        self.parts: list[Mapping[str, Any]] = []

    def once(self, kind: str, parts: Mapping[str, Any], compute: Callable[[], Content]) -> Any:
        self.parts.append(parts)
        return SimpleNamespace(content=compute(), origin=dict, hit=False)


OWN = """
class Own:
    repeatable = True
    needs_validation = False

    def __call__(self, model, inputs):
        return {}
"""


def test_a_measurement_is_keyed_by_the_code_of_its_evaluation(tmp_path: Path) -> None:
    spy: Any = Spy()
    cfg = OmegaConf.create({"evaluation": {"own": {"words": str(tmp_path / "words")}}})
    keys = Keys(cfg, torch.device("cpu"), dense="model")
    keys.environment = {}
    reuse = Reuse(memory=Memory(False), shared=spy, attempts=None, models=True)
    job: Any = SimpleNamespace(keys=keys, reuse=reuse, device=torch.device("cpu"))
    inputs: Any = EvaluationInput(
        test=torch.zeros(1, 2),
        task=None,
        validation=None,
        tokenizer=None,
        device=torch.device("cpu"),
        batch_size=1,
        load_dense=lambda: None,
        out=tmp_path,
        state="dense",
        states=ON_DEVICE,
        states_bytes=1,
    )
    for code, words in ((OWN, "a"), (OWN, "a"), (f"{OWN}# edited", "a"), (OWN, "b")):
        (tmp_path / "own.py").write_text(code)
        (tmp_path / "words").write_text(words)
        spec = spec_from_file_location("own", tmp_path / "own.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules["own"] = module
        spec.loader.exec_module(module)
        model: Any = torch.nn.Linear(1, 1)
        _once(job, "dense", "own", module.Own(), inputs, "model", model)
    digests = [digest(parts) for parts in spy.parts]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_is_remembered_of_pruning_is_of_the_same_machine_setting() -> None:
    settings = {"pruner": {"variant": False}, "statistics": "exact", "prunable": {}}
    cfg = OmegaConf.create(settings)
    digests = []
    for threads in (1, 2):
        keys = Keys(cfg, torch.device("cpu"), dense="model")
        keys.environment = {"threads": threads}
        digests.append(digest(keys.observing(Calibration(()), WANDA, Uniform())))
    assert digests[0] != digests[1]


def scoring_job(folder: Path, *, shared: bool, memory: bool, overrides: Sequence[str] = ()) -> Any:
    """A job of a sweep, with its schedule, as far as measuring reads it."""
    cfg = compose("run", list(overrides))
    keys = Keys(cfg, torch.device("cpu"), dense="model")
    keys.environment = {}
    cache = Cache(folder, owner=folder) if shared else None
    reuse = Reuse(memory=Memory(memory), shared=cache, attempts=None, models=True)
    name = cfg.sparsity_schedule["_target_"].split(".")[2]
    schedule = schedule_of(name, **{str(k): v for k, v in cfg.sparsity_schedule.items()})
    return SimpleNamespace(
        cfg=cfg, keys=keys, reuse=reuse, parts=SimpleNamespace(sparsity_schedule=schedule)
    )


@pytest.mark.parametrize(("shared", "memory"), [(True, False), (False, True)])
def test_a_sweep_of_sparsities_and_pruners_measures_its_schedule_once(
    shared: bool,
    memory: bool,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []
    module = module_of("alphapruning")
    visit = module.visit_linears
    monkeypatch.setattr(module, "visit_linears", lambda *a, **k: passes.append(0) or visit(*a, **k))
    calibration, dense = Calibration((tokens[:1],)), random_model("llama")
    pruners = [Magnitude(group="row"), WANDA, RIA(power=0.5, group="layer", shares_in="float32")]
    pruners = pruners if shared else pruners[:1]
    spreads = ["0.1", "0.2", "0.3", "0.4"]
    maps = []
    for pruner, (spread, sparsity) in product(
        pruners, zip(spreads, (0.4, 0.5, 0.6, 0.7), strict=True)
    ):
        lines = ["sparsity_schedule=alphapruning", f"sparsity_schedule.spread={spread}"]
        job = scoring_job(tmp_path, shared=shared, memory=memory, overrides=lines)
        schedule = job.parts.sparsity_schedule
        rules = PruningRules(
            pruner=pruner,
            schedule=schedule,
            sparsity=sparsity,
            pattern=PATTERN,
            rounding="pruner",
            statistics="exact",
            true_sequential=False,
        )
        model = copy.deepcopy(dense)
        asked = rules(model, calibration, measuring=measuring_of(job, calibration))
        maps.append((schedule, sparsity, asked))
    assert len(passes) == 1
    for schedule, sparsity, asked in maps[:4]:
        assert asked == schedule.allocate(dense, calibration, sparsity, PATTERN)


def test_what_a_schedule_measures_is_keyed_by_all_that_decides_it_and_by_nothing_else() -> None:
    def key(*overrides: str, model: str = "model", source: str = "a", window: int = 0) -> str:
        job = scoring_job(Path(), shared=False, memory=False, overrides=overrides)
        job.keys.dense, job.keys.environment = model, {"source": source}
        calibration = Calibration((torch.tensor([[window]]),))
        return digest(job.keys.scoring(calibration, job.parts.sparsity_schedule))

    alpha, owl = "sparsity_schedule=alphapruning", "sparsity_schedule=owl"
    shaped = [f"sparsity_schedule.{line}" for line in ("spread=0.1", "min_sparsity=0.2")]
    others = [
        "sparsity=0.7",
        "pruner=sparsegpt",
        "pattern=mixed:8",
        "seed=3",
        "rounding=exact_budget",
    ]
    assert {key(alpha), key(alpha, *shaped, *others), key(alpha, window=1)} == {key(alpha)}
    assert key(owl, *shaped, *others) == key(owl)
    different = [
        key(alpha),
        key(alpha, "sparsity_schedule.metric=alpha_mid"),
        key(alpha, "sparsity_schedule.bins=0.1"),
        key(alpha, "sparsity_schedule.granularity=linear"),
        key(alpha, model="another"),
        key(alpha, source="b"),
        key(alpha, "prunable.exclude=[q_proj]"),
        key(owl),
        key(owl, "sparsity_schedule.outlier_multiple=3"),
        key(owl, window=1),
        key("sparsity_schedule=rmi"),
        key("sparsity_schedule=rmi", "sparsity_schedule.similarity_samples=32"),
    ]
    assert len(set(different)) == len(different)
    assert key("sparsity_schedule=rmi", "sparsity_schedule.beta=9") == key("sparsity_schedule=rmi")


def test_an_attempt_hands_its_finished_stages_to_the_next(tmp_path: Path) -> None:
    def attempt() -> Reuse:
        stages = Cache(tmp_path / "stages", owner=tmp_path)
        return Reuse(memory=Memory(False), shared=None, attempts=stages, models=True)

    def once(number: float) -> float:
        content = attempt().once("metrics", {"of": "x"}, lambda: Content({"a": number}), origin=[])
        return float(content.values["a"])

    assert [once(1.0), once(2.0)] == [1.0, 1.0]
    attempt().forget_attempts()
    assert once(3.0) == 3.0
