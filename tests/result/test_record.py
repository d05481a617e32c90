import json
import math
from pathlib import Path

import jsonschema
import pytest
from omegaconf import OmegaConf
from support.families import random_model

import sparsemend
from sparsemend.result.record import Result
from sparsemend.sparse.count import sparsity_report

SCHEMA = json.loads((Path(sparsemend.__file__).parent / "result" / "schema.json").read_text())
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


def test_a_run_that_has_ended_is_not_rewritten_by_a_later_error(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    result.content["status"] = "finished"
    result.fail(BrokenPipeError("the table could not be printed"))
    assert (result.content["status"], result.content["error"]) == ("finished", None)
    result.content["status"] = "running"
    for number in (1, 2):
        result.fail(ValueError(f"error {number}"))
    assert read(tmp_path / "result.json")["error"]["message"] == "error 1"


def test_a_disk_that_is_full_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sparsemend.result.record.write_json", write)
    Result(tmp_path / "result.json", CONFIG).fail(ValueError("the reason"))
    assert "result.json could not be written" in caplog.text


def test_an_infinite_perplexity_is_written_as_null(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    result.content["metrics"]["pruned"] = {"perplexity/test": math.inf}
    result.write()
    assert read(tmp_path / "result.json")["metrics"]["pruned"] == {"perplexity/test": None}


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
