"""From rates to whole weights, and every schedule with every pruner and pattern."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig
from support.configs import compose
from support.families import random_model
from support.schedules import schedule_of
from support.tiers import slow_but_for
from torch import Tensor, nn

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.config.locations import conf_folder
from sparsemend.preflight import check as preflight
from sparsemend.prune import prune
from sparsemend.pruner.admm import ADMM
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.none import NoPruner
from sparsemend.pruner.ria import RIA
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.rounding import apply_rounding
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

FREE = Pattern()


def test_a_resumed_exact_budget_has_the_debt_of_the_blocks_before() -> None:
    sizes = {f"{block}.{name}": 100 for block in "ab" for name in "xy"}
    rates = Allocation(dict.fromkeys(sizes, 0.5), sizes, 0.5)
    whole, _ = apply_rounding("exact_budget", Wanda(variant=False), rates)
    whole.around({"a.x": 0.5}, ["a.y"])  # 50 zeros of a.y, of which a.x takes what it can
    again, _ = apply_rounding("exact_budget", Wanda(variant=False), rates)
    again.carry_on_(json.loads(json.dumps(whole.to_carry())))
    assert vars(again) | {"pruner": None} == vars(whole) | {"pruner": None}
    asked = {"b.x": 0.5, "b.y": 0.5}
    assert again.around(asked, []) == whole.around(asked, [])


def admm(group: Literal["layer", "row"]) -> ADMM:
    return ADMM(
        iterations=4,
        mask_iterations=2,
        ramp="cubic",
        group=group,
        rho=1.0,
        damping=0.1,
        mask=None,
    )


EXACT = {
    "magnitude by layer": Magnitude(group="layer"),
    "magnitude by row": Magnitude(group="row"),
    "wanda": Wanda(variant=False),
    "sparsegpt": SparseGPT(block_size=16, damping=0.01),
    "ria": RIA(power=0.5, group="layer", shares_in="float32"),
    "ria by row": RIA(power=0.5, group="row", shares_in="float32"),
    "admm": admm("layer"),
    "admm by row": admm("row"),
}


def zeros(model: nn.Module) -> dict[str, int]:
    supports = {
        n: m.keep for n, m in prunable_linears(model).items() if isinstance(m, SparseLinear)
    }
    return {name: int((~keep).sum()) for name, keep in supports.items()}


BUDGETS = [
    (pruner, schedule, sparsity)
    for pruner in EXACT
    for schedule in ("uniform", "owl", "er", "lamp")
    for sparsity in (0.0, 0.7)
]


@pytest.mark.parametrize(
    ("pruner", "schedule", "sparsity"),
    # every pruner with one schedule, every schedule with one pruner, nothing pruned once
    slow_but_for(
        BUDGETS,
        [
            ("wanda", "uniform", 0.0),
            *(b for b in BUDGETS if b[2] and (b[0] == "wanda" or b[1] == "er")),
        ],
    ),
)
def test_an_exact_budget_is_met_to_one_weight(
    pruner: str, schedule: str, sparsity: float, tokens: Tensor
) -> None:
    model, calibration = random_model("llama", intermediate_size=44), Calibration(tokens.split(2))
    allocation = schedule_of(schedule).allocate(model, calibration, sparsity, FREE)
    prune(model, calibration, *apply_rounding("exact_budget", EXACT[pruner], allocation), FREE)
    found, total = zeros(model), sum(allocation.sizes.values())
    assert sum(found.values()) == round(sparsity * total)
    assert all(abs(found[n] - rate * allocation.sizes[n]) < 1 for n, rate in allocation.items())


def test_the_pruner_s_own_rounding_is_left_alone(tokens: Tensor) -> None:
    model, pruner = random_model("llama"), Wanda(variant=False)
    allocation = schedule_of("uniform").allocate(model, Calibration(()), 0.7, FREE)
    assert apply_rounding("pruner", pruner, allocation) == (pruner, allocation)
    prune(model, Calibration(tokens.split(2)), pruner, allocation, FREE)
    # int(32 * 0.7) and int(48 * 0.7) of every row
    lost = {int((~m.keep).sum(1).unique()) for m in prunable_linears(model).values()}
    assert lost == {22, 33}


def test_rows_and_column_blocks_differ_by_one_weight_at_most(tokens: Tensor) -> None:
    for name, size in (("wanda", 1), ("sparsegpt", 16)):
        model = random_model("llama")
        allocation = schedule_of("uniform").allocate(model, Calibration(()), 0.7, FREE)
        prune(
            model,
            Calibration(tokens.split(2)),
            *apply_rounding("exact_budget", EXACT[name], allocation),
            FREE,
        )
        for linear in prunable_linears(model).values():
            lost = (~linear.keep).sum(1)
            if size > 1:
                lost = (~linear.keep).unflatten(1, (-1, size)).sum(dim=(0, 2))
            assert int(lost.max() - lost.min()) <= 1


def test_what_stays_under_the_exact_rule_scores_highest_in_its_group(tokens: Tensor) -> None:
    """The extra weights go where they cost least: no kept score is below a removed one's."""
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    pruner = Magnitude(group="layer")
    keep = pruner.exactly(weight, None, 83).keep
    assert int((~keep).sum()) == 83
    assert float(weight.abs()[~keep].max()) < float(weight.abs()[keep].min())


def test_magnitude_by_layer_removes_what_lies_below_the_global_threshold() -> None:
    """With exact counts: weight by weight the global magnitude pruner."""
    model = random_model("llama")
    weights = torch.cat(
        [m.weight.detach().abs().flatten() for m in prunable_linears(model).values()]
    )
    count = round(0.6 * len(weights))
    threshold = weights.kthvalue(count).values
    below = {n: m.weight.detach().abs() <= threshold for n, m in prunable_linears(model).items()}
    allocation = schedule_of("global").allocate(model, Calibration(()), 0.6, FREE)
    prune(
        model,
        Calibration(()),
        *apply_rounding("exact_budget", Magnitude(group="layer"), allocation),
        FREE,
    )
    for name, linear in prunable_linears(model).items():
        assert torch.equal(~linear.keep, below[name])


PRUNERS = sorted(path.stem for path in (conf_folder() / "pruner").glob("*.yaml"))
CHOOSING = [name for name in PRUNERS if name not in ("existing", "none")]
SCHEDULES = sorted(path.stem for path in (conf_folder() / "sparsity_schedule").glob("*.yaml"))
PATTERNS = ("unstructured", "2:4", "mixed:8")
BY_LINEAR = ("er", "er_plus", "global", "lamp")  # granularity=linear where it is a choice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk, and rates for its three blocks."""
    folder = tmp_path_factory.mktemp("model")
    model = random_model("llama")
    with torch.no_grad():  # the support of pruner=existing
        model.model.layers[0].mlp.up_proj.weight[0] = 0
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "rates.yaml").write_text("0: 0.25\n1: 0.5\n2: 0.75\n")
    return folder


@cache
def member(group: str, name: str) -> DictConfig:
    return compose("run", [f"{group}={name}"])


def composed(folder: Path, schedule: str, pruner: str, pattern: str, rounding: str) -> DictConfig:
    """What the command line of these choices composes; by group, since hundreds are asked for."""
    cfg = copy.deepcopy(member("model", "local"))
    cfg.model.path, cfg.model.context_length = str(folder), 16
    cfg.pruner = copy.deepcopy(member("pruner", pruner).pruner)
    cfg.sparsity_schedule = copy.deepcopy(member("sparsity_schedule", schedule).sparsity_schedule)
    cfg.sparsity_schedule |= {
        "atp": {"common_difference": 0.125},
        "file": {"path": str(folder / "rates.yaml")},
        "rmi": {"similarity_samples": 8},
    }.get(schedule, {})
    cfg.method = member("method", "none").method
    cfg.pattern, cfg.rounding = pattern, rounding
    cfg.sparsity = 0 if pruner == "none" else 0.5
    return cfg


def reason(schedule: str, pattern: str) -> str | None:
    """What a combination is refused with; None where it works."""
    if pattern == "unstructured":
        return None
    if pattern == "2:4" and schedule != "uniform":
        return f"which {schedule} varies; use pattern=mixed:4"
    if schedule in BY_LINEAR:
        return "gives each linear a rate of its own, which cannot be whole N of pattern mixed:8"
    return None


COMBINATIONS = [
    (schedule, pruner, pattern, rounding)
    for schedule in SCHEDULES
    for pruner in CHOOSING
    for pattern, rounding in [*((p, "pruner") for p in PATTERNS), ("unstructured", "exact_budget")]
]
# every schedule with one pruner, every pruner with one schedule
PAIRS = [c for c in COMBINATIONS if c[1] == "wanda" or c[0] == "owl"]


@pytest.mark.parametrize(
    ("schedule", "pruner", "pattern", "rounding"), slow_but_for(COMBINATIONS, PAIRS)
)
def test_every_combination_works_or_is_refused_with_the_reason(
    schedule: str, pruner: str, pattern: str, rounding: str, folder: Path, tokens: Tensor
) -> None:
    refusal = reason(schedule, pattern)
    cfg = composed(folder, schedule, pruner, pattern, rounding)
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            preflight.check(cfg)
        return
    preflight.check(cfg)
    check_pruning(cfg, tokens)


@pytest.mark.parametrize("schedule", ["uniform", "owl", "er"])
def test_pruning_nothing_works_with_any_schedule_and_refuses_patterns(
    schedule: str, folder: Path, tokens: Tensor
) -> None:
    cfg = composed(folder, schedule, "none", "unstructured", "exact_budget")
    preflight.check(cfg)
    check_pruning(cfg, tokens)
    with pytest.raises(ValueError, match="pruner=none keeps every weight, but pattern is 2:4"):
        preflight.check(composed(folder, schedule, "none", "2:4", "pruner"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_support_that_is_there_asks_nothing_of_a_schedule(pattern: str, folder: Path) -> None:
    preflight.check(composed(folder, "owl", "existing", pattern, "exact_budget"))


def test_an_exact_budget_that_something_undoes_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="fixes the zeros of every group itself; use rounding="):
        preflight.check(composed(folder, "uniform", "wanda", "2:4", "exact_budget"))
    cfg = composed(folder, "uniform", "wanda", "unstructured", "exact_budget")
    cfg.pruner.variant = True
    with pytest.raises(ValueError, match="threshold gives no exact count"):
        preflight.check(cfg)
    cfg.pruner.variant = False
    cfg.method = {"_target_": "sparsemend.method.dsnot.dsnot.DSnoT", "start": "pruner"}
    with pytest.raises(ValueError, match=r"use method\.start=given"):
        preflight.check(cfg)
    cfg.rounding = "up"
    with pytest.raises(ValueError, match="rounding=up is not one of pruner, exact_budget"):
        preflight.check(cfg)


def check_pruning(cfg: DictConfig, tokens: Tensor) -> None:
    chosen: Pruner = built(cfg.pruner)
    model, calibration = random_model("llama"), Calibration(tokens.split(4))
    pattern = Pattern.parse(cfg.pattern)
    allocation = built(cfg.sparsity_schedule).allocate(model, calibration, cfg.sparsity, pattern)
    total = sum(allocation.sizes.values())
    prune(model, calibration, *apply_rounding(cfg.rounding, chosen, allocation), pattern)
    found = zeros(model)
    if cfg.rounding == "exact_budget" or isinstance(chosen, NoPruner) or not pattern.unstructured:
        # rates that a pattern allows are exact, the mixed ones rounded to N of the mean
        wanted = sum(rate * allocation.sizes[n] for n, rate in allocation.items())
        assert abs(sum(found.values()) - wanted) <= 0.5 + 1e-6
    for name, linear in prunable_linears(model).items():
        assert not linear.weight.masked_fill(linear.keep, 0).any()
        # a row rule loses one weight in 32 at most, a threshold gains one per column block
        assert abs(found[name] / allocation.sizes[name] - allocation[name]) <= 1 / 32
        if not pattern.unstructured:
            at = pattern.at(allocation[name])
            groups = linear.keep.view(linear.out_features, -1, at.group_size).sum(dim=2)
            assert groups.unique().tolist() == [at.kept]
    assert total == sum(m.weight.numel() for m in prunable_linears(model).values())


def built(section: DictConfig) -> object:
    return instantiate(
        section, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
    )
