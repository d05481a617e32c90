import inspect
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from support import contracts
from support.configs import compose
from support.tiers import slow_but_for

from sparsemend.config.locations import conf_folder
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import check_supports

MIRRORED = ("pruner", "sparsity_schedule", "method", "evaluation", "suite")
BENCHED = ("suite", "shape")  # groups of bench.yaml, the others are run.yaml's
LISTS = ("evaluation", "logger")  # groups of which a run has several members
BUILT = (*MIRRORED, "model", "data", "hardware", "logger", "shape")


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


@cache
def composed(group: str, member: str) -> DictConfig:
    choice = f"{group}=[{member}]" if group in LISTS else f"{group}={member}"
    section = compose("bench" if group in BENCHED else "run", [choice])[group]
    return section[member] if group in LISTS else section


EVERY = [(group, member) for group in BUILT for member in members(group)]
METHODS = members("method")
TARGETS = {m: OmegaConf.load(conf_folder() / "method" / f"{m}.yaml")["_target_"] for m in METHODS}
# a training-free, a trained, a round-wise, a moving and a block-wise method
QUICK = ["none", "dsnot", "masked_lora", "losa", "seft", "reconstruct"]
TRAINED = [m for m in METHODS if issubclass(get_class(TARGETS[m]), TrainedRepair)]


@pytest.mark.parametrize(("group", "member"), EVERY)
def test_yaml_keys_are_the_constructor_parameters(group: str, member: str) -> None:
    section = composed(group, member)
    parameters = inspect.signature(get_class(section["_target_"])).parameters
    assert set(section) - {"_target_"} == set(parameters)
    for parameter in parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is inspect.Parameter.empty


@pytest.mark.parametrize(("group", "member"), [e for e in EVERY if e[0] in MIRRORED])
def test_yaml_stem_is_the_module_stem(group: str, member: str) -> None:
    """A member of several files lies in a folder of its name."""
    module = composed(group, member)["_target_"].rsplit(".", 1)[0]
    room = "sparsemend.bench.suite" if group == "suite" else f"sparsemend.{group}"
    assert module in (f"{room}.{member}", f"{room}.{member}.{member}")


@pytest.mark.parametrize("group", BUILT)
def test_every_value_in_a_yaml_says_what_it_means(group: str) -> None:
    for path in (conf_folder() / group).glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("#") and "@package" not in line for line in lines), path


@pytest.mark.parametrize("group", BENCHED)
def test_every_key_of_a_bench_yaml_has_a_comment(group: str) -> None:
    for path in (conf_folder() / group).glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        keys = [n for n in lines if ":" in n and not n.lstrip().startswith(("#", "_target_"))]
        assert keys
        assert [line for line in keys if "  # " not in line] == [], path


# other forms of one method, under the same contract
VARIANTS = {
    "masked_lora two_gemm": ("masked_lora", "method.form=two_gemm", "method.dropout=0.1"),
    "lora dropout": ("lora", "method.dropout=0.1"),
    "lora densified": ("lora", "method.allow_densify=true"),
    "spp plain": ("spp", "method.form=plain"),
    "spp checkpointed": ("spp", "method.form=checkpointed"),
    "lors released": ("lors", "method.grad_mode=released"),
    "lors exact": ("lors", "method.grad_mode=exact"),
    "lors exact_tiled": ("lors", "method.grad_mode=exact_tiled", "method.tile_rows=5"),
    "lors derived": ("lors", "method.mask=derived"),
    "lors kaiming": ("lors", "method.init=kaiming"),
    "lors bf16-mixed": ("lors", "method.precision=bf16-mixed"),
    "perp released": ("perp", "method.trained=[biases,norms,lm_head,mask_lora]"),
    "perp scale_lora": ("perp", "method.trained=[biases,norms,scale_lora]"),
    "perp perturbed": ("perp", "method.trained=[norms,scale_lora]", "method.init=perturbed"),
    "masked_lora distilled": (
        "masked_lora",
        "method.distill.weight=0.5",
        "method.distill.hidden_weight=1",
        "method.distill.teacher_dtype=bfloat16",
    ),
    "losa distilled": ("losa", "method.distill.weight=0.5"),
    "masked_full distilled": ("masked_full", "method.distill.weight=1"),
    "masked_full set": ("masked_full", "method.mask_update=set", "method.update_until=1.0"),
    "masked_full rigl": ("masked_full", "method.mask_update=rigl", "method.update_until=1.0"),
    "seft within groups": ("seft", "method.pattern_growth=within_group", "method.kernel=sparse"),
    "spiel moments": ("spiel", "method.selection=moments"),
    "masked_full sgd": ("masked_full", "method.optimizer=sgd"),
    "losa carried": ("losa", "method.optimizer_state=carried", "method.dropout=0"),
    "losa capped": ("losa", "method.rank_cap=4", "method.exact_base=false"),
}
# what a method needs to be told to accept a fixed pattern
FIXED = {"losa": ("method.fixed_pattern=true",)}
EVERY_TRAINED = {**{name: (name,) for name in TRAINED}, **VARIANTS}
# a fit each: the default tier has every yaml, and those forms that move masks or train otherwise
FITTED = slow_but_for(
    EVERY_TRAINED,
    [*TRAINED, "masked_full rigl", "masked_full set", "lors derived", "seft within groups"],
)
IN_BF16 = [name for name in TRAINED if name != "masked_full"]
# three fits each; what a checkpoint holds differs between plain adapters, mask updates, deltas and
# rounds; training/test_ranks.py has it for several processes
RESUMED = slow_but_for(EVERY_TRAINED, ["masked_lora", "masked_full rigl", "seft", "losa"])


def variant(name: str) -> TrainedRepair:
    method = contracts.method_of(*EVERY_TRAINED[name])
    assert isinstance(method, TrainedRepair)
    return method


@pytest.mark.parametrize("name", METHODS)
def test_supports_hold(name: str, tmp_path: Path) -> None:
    contracts.check_supports_hold(contracts.method_of(name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_two_four_stays_two_four(name: str, tmp_path: Path) -> None:
    method = contracts.method_of(name, *FIXED.get(name, ()))
    contracts.check_supports_hold(method, tmp_path, pattern="2:4")


@pytest.mark.parametrize("name", slow_but_for(METHODS, QUICK))
def test_same_seed_gives_same_bits(name: str, tmp_path: Path) -> None:
    contracts.check_same_seed_gives_same_bits(lambda: contracts.method_of(name), tmp_path)


@pytest.mark.parametrize("name", slow_but_for(EVERY_TRAINED, TRAINED))
def test_attaching_is_invisible(name: str, tmp_path: Path) -> None:
    contracts.check_attaching_is_invisible(variant(name), tmp_path)


@pytest.mark.parametrize("name", FITTED)
def test_only_what_is_trained_moves(name: str, tmp_path: Path) -> None:
    contracts.check_only_what_is_trained_moves(variant(name), tmp_path)


@pytest.mark.parametrize("name", slow_but_for(EVERY_TRAINED, TRAINED))
def test_fold_equals_adapter_forward(name: str, tmp_path: Path) -> None:
    contracts.check_fold_equals_adapter_forward(variant(name), tmp_path)


@pytest.mark.parametrize("name", RESUMED)
def test_resume_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    contracts.check_resume_equals_uninterrupted(lambda: variant(name), tmp_path)


@pytest.mark.parametrize("name", FITTED)
def test_supports_hold_after_every_step(name: str, tmp_path: Path) -> None:
    """Under weight decay, momentum and accumulation."""
    method = variant(name)
    method.weight_decay, method.windows_per_step = 0.1, 2
    contracts.check_supports_hold_after_every_step(method, tmp_path)


@pytest.mark.parametrize(
    "name", slow_but_for([n for n in EVERY_TRAINED if not n.startswith("masked_full")], IN_BF16)
)
def test_a_bf16_model_is_repaired_in_bf16(name: str, tmp_path: Path) -> None:
    """Masked full fine-tuning refuses it: its weights are what trains."""
    method, model = variant(name), contracts.pruned_model(family="opt").to(torch.bfloat16)
    names = list(contracts.bits(model))
    method.repair(model, contracts.bench_for(tmp_path, family="opt"))
    check_supports(model)
    if method.foldable:
        assert list(contracts.bits(model)) == names
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
