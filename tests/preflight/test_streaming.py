"""What needs the whole model is refused where its blocks are to stay in files."""

from __future__ import annotations

import pytest
import yaml
from support.configs import compose

from sparsemend.checkpoint.model import Model, ModelConfig
from sparsemend.config.flags import flag_of
from sparsemend.config.locations import conf_folder
from sparsemend.config.streaming import obstacle
from sparsemend.preflight.streaming import check_streaming
from sparsemend.sparsity_schedule.base import SparsitySchedule

CONF = conf_folder()

WHOLE = Model("somewhere", ModelConfig({}), None)
STREAMS = ["method=none", "hardware.stream=true"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=masked_lora"], "method=masked_lora works on all blocks of the model at once"),
        (["evaluation=[perplexity,speed]"], "evaluation=speed needs all blocks of the model"),
    ],
)
def test_what_needs_the_whole_model_is_refused(overrides: list[str], reason: str) -> None:
    cfg = compose("run", [*STREAMS, *overrides])
    cfg.evaluation.perplexity["_target_"] = "support.streamed.Counted"
    with pytest.raises(ValueError, match=rf"hardware\.stream=true: {reason}.*stream=false"):
        check_streaming(cfg, WHOLE)
    cfg.hardware.stream = "auto"
    check_streaming(cfg, WHOLE)  # such a run loads its model whole


class Read(SparsitySchedule):
    """A schedule of one's own that says nothing of streaming."""


def test_a_schedule_that_does_not_say_it_reads_block_by_block_is_refused() -> None:
    cfg = compose("run", STREAMS)
    cfg.sparsity_schedule["_target_"] = f"{__name__}.Read"
    with pytest.raises(ValueError, match=r"sparsity_schedule=read reads the weights of all blocks"):
        check_streaming(cfg, WHOLE)


@pytest.mark.parametrize("member", sorted(p.stem for p in (CONF / "sparsity_schedule").glob("*")))
def test_every_schedule_of_ours_reads_block_by_block(member: str) -> None:
    target = yaml.safe_load((CONF / f"sparsity_schedule/{member}.yaml").read_text())["_target_"]
    assert flag_of(target, "streams")


def test_a_method_and_evaluations_that_work_by_block_have_no_obstacle() -> None:
    cfg = compose("run", STREAMS)
    cfg.evaluation.perplexity["_target_"] = "support.streamed.Counted"
    assert obstacle(cfg) is None


@pytest.mark.parametrize(
    ("overrides", "model", "reason"),
    [
        (["model=tiny_untrained"], WHOLE, "weights of model=.*untrained.* are made at random"),
        ([], Model("there", ModelConfig({}), None, pickled=True), "model there are pickled"),
        (
            [],
            Model("there", ModelConfig({"quantization_config": {"quant_method": "fp8"}}), None),
            "model there is quantised",
        ),
    ],
)
def test_a_model_that_no_file_gives_by_block_is_refused_before_it_is_loaded(
    overrides: list[str], model: Model, reason: str
) -> None:
    cfg = compose("run", [*STREAMS, *overrides])
    with pytest.raises(ValueError, match=rf"hardware\.stream=true: .*{reason}.*; set hardware"):
        check_streaming(cfg, model)
    cfg.hardware.stream = "auto"
    check_streaming(cfg, model)
