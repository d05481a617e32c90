"""Grids and bounds of a search: the sheet's numbers, and nothing illegal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.configs import compose
from support.unusual import unusual_model

from sparsemend.config.locations import conf_folder
from sparsemend.config.prunable import PrunableNames
from sparsemend.sparsity_schedule.rates.difference_bound import weights_of_config
from sparsemend.sparsity_schedule.rates.progression import bound, check_difference, rates
from sparsemend.sparsity_schedule.rates.units import Units
from sparsemend.sweep.search.space import Interval, Listed, Space, space_of, spread, steps


def space(*overrides: str) -> Space:
    lines = ["+search=atp_common_difference", *overrides]
    return space_of(compose("run", overrides=lines))


def listed(*overrides: str) -> Listed:
    values = space(*overrides).values
    assert isinstance(values, Listed)
    return values


def interval(*overrides: str) -> Interval:
    values = space(*overrides).values
    assert isinstance(values, Interval)
    return values


# atp.md, section 2: L -> grid points of 0.002 at S = 0.5, 0.6, 0.7, 0.8
GRID = {
    12: (45, 36, 27, 18),
    16: (33, 26, 20, 13),
    24: (21, 17, 13, 8),
    28: (18, 14, 11, 7),
    32: (16, 12, 9, 6),
    40: (12, 10, 7, 5),
    60: (8, 6, 5, 3),
    80: (6, 5, 3, 2),
}


@pytest.mark.parametrize("blocks", GRID)
def test_the_papers_grid_has_the_sheets_number_of_points(blocks: int) -> None:
    for sparsity, count in zip((0.5, 0.6, 0.7, 0.8), GRID[blocks], strict=True):
        points = steps(bound(sparsity, blocks), 0.002)
        assert len(points) == count
        assert points == [round(0.002 * n, 3) for n in range(1, count + 1)]
        for point in points:
            check_difference(point, sparsity, blocks)


def test_a_point_on_the_bound_is_legal_although_floats_put_it_beyond() -> None:
    # L = 16, S = 0.7: the bound is 0.04, in float64 0.04000000000000001
    assert steps(bound(0.7, 16), 0.002)[-1] == 0.04


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_a_spread_reaches_a_dense_or_an_empty_block_in_equal_parts(sparsity: float) -> None:
    points = spread(bound(sparsity, 6), 9)
    ends = rates(points[-1], sparsity, 6)
    assert min(ends[0], 1 - ends[-1]) == pytest.approx(0, abs=1e-12)
    assert points == pytest.approx([points[0] * k for k in range(1, 10)])


def test_the_default_is_uniform_and_nine_parts_of_the_models_bound() -> None:
    values = listed("sparsity=0.7")
    assert values.points[0] == 0
    assert len(values.points) == values.total == 10
    assert values.points[-1] == bound(0.7, 6)


def test_the_bound_follows_the_models_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 32}))
    (tmp_path / "pytorch_model.bin").touch()
    model = ("model=local", f"model.path={tmp_path}", "model.context_length=16")
    values = listed(*model, "sparsity=0.7", "search.points=step")
    assert len(values.points) == 10  # nine of the paper, and 0
    assert interval(*model, "sparsity=0.7", "search.sampler=tpe").high == bound(0.7, 32)


def test_the_bound_of_blocks_of_two_kinds_follows_the_checkpoints_headers(tmp_path: Path) -> None:
    model = unusual_model("jamba")
    model.save_pretrained(tmp_path)
    weights = Units.of(model, "block").weights
    lines = ["model=local", f"model.path={tmp_path}", "model.context_length=16", "sparsity=0.7"]
    assert interval(*lines, "search.sampler=tpe").high == bound(0.7, len(weights), weights)
    prunable = PrunableNames.of(compose("run"))
    assert weights_of_config(model.config, prunable) == weights  # as of a model on the hub


def test_a_model_out_of_reach_asks_for_its_number_of_blocks() -> None:
    lines = ("model=llama2_7b", "search.bound.blocks=32", "search.sampler=golden")
    assert interval(*lines).high == 2 * 0.4 / 31
    with pytest.raises(ValueError, match=r"give search\.bound\.blocks=L"):
        space("model=llama2_7b")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("search.points=[0.01,0.2]",),
            r"common_difference 0\.2 exceeds .* = 0\.16 for L=6, s=0\.6",
        ),
        (("search.sampler=tpe", "search.high=0.17"), r"common_difference 0\.17 exceeds"),
        (("search.sampler=tpe", "search.low=-0.2"), r"common_difference -0\.2 exceeds"),
        (("search.sampler=golden", "search.low=0.1", "search.high=0.1"), "are no interval"),
        (("search.sampler=golden", "search.low=0.01"), r"search\.baseline=0\.0 is not in"),
        (("search.sampler=tpe", "search.log=true"), "has no logarithm"),
        (("search.sampler=tpe", "search.trials=1"), "not an integer of at least 2"),
        (("search.sampler=bayes",), "not one of listed, golden, tpe"),
        (("search.bound=gravity",), "gravity is not null or a node with _target_"),
        (("search.bound={_target_: nowhere.Bound}",), "search.bound cannot be built: "),
        (("search.key=???",), "search.key is missing"),
        (("search.points=step", "search.step=0"), "is not above 0"),
        (("search.points=step", "search.step=0.2"), r"exceeds the bound 0\.16"),
        (("search.count=0",), "not an integer of at least 1"),
        (("search.points=null",), "is not a list of values"),
        (("search.bound=null",), r"needs search\.bound"),
        (("sparsity=0",), "leaves no room for rates that differ"),
        (("sparsity=0.875", "pattern=mixed:8"), r"give one in \(0, 0\.875\)"),
        (
            ("search.points=[null]",),
            r"search\.points: None is not a number, which search\.bound=spa",
        ),
        (("search.points=[a]",), r"search\.points: a is not a number, which search\.bound="),
        (
            ("search.points=[[0.1]]",),
            r"search\.points: \[0\.1\] is not one value of sparsity_sched",
        ),
        (("search.sampler=golden", "search.baseline=a"), r"search\.baseline=a is not a number"),
        (("search.sampler=tpe", "search.low=a"), r"search\.low=a is not a number"),
        (("search.sampler=tpe", "search.high=a"), r"search\.high=a is not a number"),
        (
            ("search.bound.blocks=abc",),
            r"search\.bound\.blocks=abc is not an integer of at least 1",
        ),
        (("search.bound.blocks=100",), r"blocks=100, but .* has 6 blocks to prune; leave it out"),
    ],
)
def test_what_has_no_legal_value_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(*overrides)


def test_a_bound_of_the_users_own_limits_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_bound.py").write_text(
        "class Rank:\n"
        "    def __init__(self, cfg, *, widest):\n"
        "        self.limit = cfg.method.rank * widest\n"
        "    def check(self, value):\n"
        "        if value > self.limit:\n"
        "            raise ValueError(f'rank {value} is above {self.limit}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["+search=rank", "search.bound={_target_: mine_bound.Rank, widest: 2}"]
    assert space_of(compose("run", [*lines, "method.rank=16"])).values.ends == (2, 32)
    with pytest.raises(ValueError, match="is above 16"):
        space_of(compose("run", [*lines, "method.rank=8"]))


def test_every_key_of_a_search_has_a_comment() -> None:
    text = (conf_folder() / "search" / "base.yaml").read_text(encoding="utf-8")
    lines = text.partition("\nsearch:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) > 10
    assert [line for line in lines if "  # " not in line] == []


@pytest.mark.parametrize("path", sorted((conf_folder() / "search").glob("*.yaml")))
def test_a_search_sets_no_key_that_the_base_does_not_explain(path: Path) -> None:
    keys = OmegaConf.load(conf_folder() / "search" / "base.yaml").search.keys()
    assert set(OmegaConf.load(path).search) <= set(keys)
