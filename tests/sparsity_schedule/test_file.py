import json
from pathlib import Path

import pytest
from support.families import random_model
from support.schedules import schedule_of

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.sparsity_schedule.rates.rates_file import (
    by_linear,
    by_module,
    check_rates,
    read_rates,
)

FREE = Pattern()
NAMES = ["model.layers.0.fc1", "model.layers.0.fc2", "model.layers.1.fc1", "model.layers.1.fc2"]


def allocate(path: Path, sparsity: float, pattern: str = "unstructured") -> Allocation:
    schedule = schedule_of("file", path=str(path))
    return schedule.allocate(
        random_model("llama"), Calibration(()), sparsity, Pattern.parse(pattern)
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "0: 0.5\n1: 0.6\n2: 0.7\n"),
        ("a.json", '{"model.layers.0": 0.5, "model.layers.1": 0.6, "2": 0.7}'),
        ("a.csv", "block,sparsity\n0,0.5\n1,0.6\n2,0.7\n"),
        ("a.csv", "0,0.5\n1,0.6\n2,0.7\n"),
    ],
)
def test_rates_by_block_are_read_from_every_format(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = allocate(path, 0.6)
    assert {n.split(".")[2]: rate for n, rate in found.items()} == {"0": 0.5, "1": 0.6, "2": 0.7}
    assert found.mean == pytest.approx(0.6)


def test_a_linear_s_own_rate_goes_before_its_block_s() -> None:
    rates = {"0": 0.5, "1.fc2": 0.9, "layers.1": 0.1, "model.layers.0.fc1": 0.2}
    assert by_linear(rates, NAMES) == dict(zip(NAMES, [0.2, 0.5, 0.1, 0.9], strict=True))


def test_rates_have_saved_names_or_those_of_modules() -> None:
    saved = {
        "m.layers.0.mlp.experts.1.gate_proj": "m.layers.0.moe.experts.1.w1",
        "m.layers.0.mlp.experts.1.up_proj": "m.layers.0.mlp.experts.gate_up_proj[1, up]",
    }
    rates = {"0.moe.experts.1.w1": 0.5, "m.layers.0.mlp.experts.gate_up_proj[1, up]": 0.6, "0": 0.1}
    of_modules = dict(zip([*saved, "0"], [0.5, 0.6, 0.1], strict=True))
    assert by_module(rates, saved) == by_module(of_modules, saved) == of_modules
    with pytest.raises(ValueError, match="name the same place"):
        by_module({**rates, "m.layers.0.mlp.experts.1.gate_proj": 0.5}, saved)


def test_the_result_of_a_run_gives_its_rates(tmp_path: Path) -> None:
    per_linear = {n: {"asked": 0.25 * i, "achieved": 0} for i, n in enumerate(NAMES)}
    content = {"schema": "sparsemend-result-1", "sparsity": {"per_linear": per_linear}}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    assert read_rates(path) == dict(zip(NAMES, [0.0, 0.25, 0.5, 0.75], strict=True))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"0": 0.5}, "2 of 4 linears have no rate, first model.layers.1.fc1"),
        ({"0": 0.5, "1": 0.5, "2": 0.5}, "1 keys name no linear and no block.*first '2'"),
        ({"0": 0.5, "1": 0.5, "1.fc9": 0.5}, r"first '1\.fc9'; a linear is for example '0\.fc1'"),
        ({"model.layers.0": 0.5, "0": 0.6}, "'model.layers.0' and '0' name the same place"),
        ({"0.fc1": 0.5, "a.0.fc1": 0.6}, "'0.fc1' and 'a.0.fc1' name the same place"),
    ],
)
def test_missing_and_extra_keys_are_named(rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_linear(rates, NAMES)


def test_messages_name_linears_as_their_files_do() -> None:
    saved = {name: name.replace("fc", "w") for name in NAMES}
    with pytest.raises(ValueError, match=r"have no rate, first model\.layers\.1\.w1;"):
        by_linear({"0": 0.5}, NAMES, saved)
    with pytest.raises(ValueError, match=r"first '3'; a linear is for example '0\.w1'"):
        by_linear({"0": 0.5, "1": 0.5, "3": 0.5}, NAMES, saved)
    rates = dict.fromkeys(NAMES, 0.55)
    sizes = dict.fromkeys(NAMES, 8)
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.w1: "):
        check_rates(rates, sizes, 0.55, Pattern.parse("mixed:8"), 0.0, saved)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "0: 1.5\n", r"0: sparsity 1\.5 is not in \[0, 1\]"),
        ("a.yaml", "0: much\n", r"0: sparsity much is not in \[0, 1\]"),
        ("a.yaml", "- 1\n", "holds no mapping"),
        ("a.yaml", "a: [1\n", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.csv", "0,0.5\n0,0.6\n", "0 stands there twice"),
        ("a.json", '{"0": 0.5, "0": 0.6}', "0 stands there twice"),
        ("a.yaml", "0: 0.5\n1: 0.5\n0: 0.6\n", "0 stands there twice"),
        ("a.csv", "e[3, up],0.5\n", "is not a row of two columns.*in double quotes"),
        ("a.txt", "0,0.5\n", r"is not one of \.yaml"),
    ],
)
def test_a_file_that_is_no_rates_says_why(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rates(path)


def test_linears_named_by_number_are_no_blocks() -> None:
    names = [f"model.layers.{block}.mlp.{linear}" for block in (0, 1) for linear in (0, 2)]
    rates = {name: 0.1 * number for number, name in enumerate(names)}
    assert by_linear(rates, names) == rates
    assert by_linear({"0": 0.5, "1": 0.6, "0.mlp.0": 0.7}, names) == {
        names[0]: 0.7,
        names[1]: 0.5,
        names[2]: 0.6,
        names[3]: 0.6,
    }


def test_a_yaml_merge_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {0: 0.5, 1: 0.5}\nrates: {<<: *base, 1: 0.7}\n")
    with pytest.raises(ValueError, match="base: sparsity"):  # read, and then no rate
        read_rates(path)


def test_a_wrong_mean_is_refused_with_the_mean(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("0: 0.5\n1: 0.6\n2: 0.7\n")
    with pytest.raises(ValueError, match=r"parameter-weighted mean 0\.600000, not sparsity=0\.7"):
        allocate(path, 0.7)


def test_a_mixed_pattern_takes_whole_n_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("0: 0.25\n1: 0.5\n2: 0.75\n")
    found = allocate(path, 0.5, "mixed:8")
    assert sorted(set(found.values())) == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match=r"keeps 1\.5 of 2 inputs, no whole number"):
        allocate(path, 0.5, "mixed:2")
    path.write_text("0: 0.25\n1: 0.25\n2: 1.0\n")
    with pytest.raises(ValueError, match=r"sparsity 1\.0 keeps none of 8"):
        allocate(path, 0.5, "mixed:8")
