import json
import math
import os
from pathlib import Path

import jsonschema
import pytest
from families import random_model
from omegaconf import OmegaConf

import sparsemend
from sparsemend.results import Result, config_hash, find_unfinished, sparsity_report

SCHEMA = json.loads((Path(sparsemend.__file__).parent / "result.schema.json").read_text())
CONFIG = OmegaConf.create({"sparsity": 0.6, "name": "a", "resume": None})


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_fresh_result_follows_the_schema(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    result.write()
    jsonschema.validate(read(tmp_path / "result.json"), SCHEMA)


def test_a_failed_result_follows_the_schema_and_says_why(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    try:
        raise ValueError("sparsity 1.2 is not in [0, 1)")
    except ValueError as error:
        result.fail(error)
    content = read(tmp_path / "result.json")
    jsonschema.validate(content, SCHEMA)
    assert content["status"] == "failed"
    assert content["error"]["message"] == "sparsity 1.2 is not in [0, 1)"


def test_an_infinite_perplexity_is_written_as_null(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    result.content["metrics"]["pruned"] = {"perplexity/test": math.inf}
    result.write()
    assert read(tmp_path / "result.json")["metrics"]["pruned"] == {"perplexity/test": None}


def test_the_hash_ignores_what_changes_no_number() -> None:
    one = config_hash({"sparsity": 0.6, "name": "a", "resume": None})
    assert one == config_hash({"name": "b", "resume": "auto", "sparsity": 0.6})
    assert one != config_hash({"sparsity": 0.5, "name": "a", "resume": None})


@pytest.mark.parametrize(
    ("status", "pid", "found"),
    [("interrupted", 1, True), ("finished", 1, False), ("running", 2**22 + 1, True)],
)
def test_resume_finds_only_unfinished_dead_runs(
    tmp_path: Path, status: str, pid: int, found: bool
) -> None:
    result = Result(tmp_path / "run" / "result.json", CONFIG)
    result.content["status"], result.content["process"]["pid"] = status, pid
    result.write()
    expected = tmp_path / "run" if found else None
    assert find_unfinished(tmp_path, result.content["config_hash"]) == expected


def test_a_run_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    result = Result(tmp_path / "run" / "result.json", CONFIG)
    result.content["process"]["pid"] = os.getppid()
    result.write()
    assert find_unfinished(tmp_path, result.content["config_hash"]) is None


def test_sparsity_is_counted_over_block_linears_and_over_all_parameters() -> None:
    model = random_model("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data.zero_()
    report = sparsity_report(model)
    prunable = sum(
        m.weight.numel()
        for b in model.model.layers
        for m in b.modules()
        if type(m).__name__ == "Linear"
    )
    assert report.total.zeros == weight.numel()
    assert report.of_prunable == weight.numel() / prunable
    assert report.of_all == weight.numel() / sum(p.numel() for p in model.parameters())
    assert report.per_block["model.layers.0"].zeros == 0
    assert report.per_linear["model.layers.1.mlp.up_proj"].sparsity == 1.0
