"""result.json as typed sections: nothing is lost on the way, and earlier versions are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from omegaconf import OmegaConf
from support import result_folders as made

from sparsemend.config.locations import PACKAGE
from sparsemend.result.folder import load_result, read_result
from sparsemend.result.record import Result
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import StageCost

SCHEMA = json.loads((PACKAGE / "result" / "schema.json").read_text())
LINEAR = "model.layers.0.q"
ORIGIN = {"hit": True, "key": "k", "seconds": 1.5, "made_by": "multirun/a/0"}


def whole() -> dict[str, Any]:
    """A result that has every section and every key of the schema."""
    content = made.result()
    content["process"] |= {"job": "17", "start": 1}
    content["provenance"]["threads"] = 2
    content["protocol"] |= {
        "statistics": "dense",
        "attention": "eager",
        "stored_as": "Q4_1 (210 tensors), F32 (61)",
        "true_sequential": True,
        "bos": True,
        "chat_template": True,
        "calibration_from": "train",
        "zero_shot": {"items": 5},
    }
    content["sparsity"] |= {
        "effective": 0.0,
        "achieved_of_all_parameters": 0.5,
        "prunable_weights": 10,
        "zeros": 6,
        "asked_per_block": {"model.layers.0": 0.6},
        "scores": {"model.layers.0": None},
        "stays_dense": {LINEAR: "reached by no calibration token"},
        "per_linear": {LINEAR: {"asked": 0.6, "achieved": 0.59}},
        "excluded": ["model.layers.0.gate"],
    }
    content["metrics"]["pruned"]["perplexity/test"] = None
    content["repair"] = {"foldable": False, "steps": 3, "evolution": {"rounds": []}}
    times = {"hit": False, "seconds": 1.0, "processor_seconds": 2.0}
    metrics = {"dense": {"perplexity": ORIGIN}}
    return content | {
        "earlier_attempts": [{"load": {"seconds": 1.0, "peak_bytes": 7}}],
        "error": {"type": "ValueError", "message": "no", "traceback": "..."},
        "peak_scope": "stage",
        "cache": {
            "pruned": ORIGIN,
            "scores": ORIGIN,
            "memory": {"model": times},
            "metrics": metrics,
        },
        "curves": {"validation/loss": [[1, 2.5]]},
        "from_run": {"folder": "a", "config_hash": "0" * 64, "commit": None},
        "seconds": 3.5,
        "processor_seconds": 7.0,
    }


def keys_of(properties: dict[str, Any], at: str = "") -> set[str]:
    """The dotted keys that a schema names."""
    keys = set()
    for name, schema in properties.items():
        keys |= {f"{at}{name}", *keys_of(schema.get("properties", {}), f"{at}{name}.")}
    return keys


def keys_in(content: dict[str, Any], at: str = "") -> set[str]:
    keys = set()
    for name, value in content.items():
        keys |= {f"{at}{name}"}
        keys |= keys_in(value, f"{at}{name}.") if isinstance(value, dict) else set()
    return keys


def test_a_whole_result_is_written_as_it_was_read() -> None:
    result = RunResult.from_json(whole())
    assert result.to_json() == whole()
    assert RunResult.from_json(result.to_json()) == result
    jsonschema.validate(result.to_json(), SCHEMA)


def test_the_whole_result_of_these_tests_has_every_key_of_the_schema() -> None:
    assert keys_of(SCHEMA["properties"]) - keys_in(whole()) == set()


def test_a_run_that_reached_nothing_leaves_its_sections_empty() -> None:
    content = RunResult(status="running", config={}, config_hash="0" * 64).to_json()
    jsonschema.validate(content, SCHEMA)
    assert content["protocol"] == content["sparsity"] == content["cost"] == content["repair"] == {}
    assert RunResult.from_json(content) == RunResult(
        status="running", config={}, config_hash="0" * 64
    )


def test_what_an_earlier_version_did_not_write_has_its_documented_meaning() -> None:
    content = made.result()
    run = made.record_of(content)
    assert {"statistics"}.isdisjoint(content["protocol"])
    assert run.result.protocol.statistics == "exact"
    assert run.foldable
    assert run.sparsity == content["sparsity"]["achieved"]
    assert run.result.attempts == [run.result.cost]
    assert run.result.cost["load"] == StageCost(2.0, 2**20)


def test_what_a_later_version_adds_is_passed_over() -> None:
    content = whole()
    content["later"] = 1
    content["provenance"]["later"] = 1
    assert RunResult.from_json(content) == RunResult.from_json(whole())


@pytest.mark.parametrize("text", ["[]", "{}", '{"status": "finished"}', "{"])
def test_a_file_that_is_not_a_runs_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json cannot be read"):
        load_result(tmp_path / "result.json")
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("section", [None, "provenance", "cost.load"])
def test_a_key_that_no_section_has_is_not_lost_silently(
    section: str | None, tmp_path: Path
) -> None:
    result = Result(tmp_path / "result.json", OmegaConf.create({"sparsity": 0.6}))
    place = result.content
    for key in section.split(".") if section else ():
        place = place.setdefault(key, {})
    place["new_key"] = 1
    with pytest.raises(ValueError, match=rf"no {section or ''}.*new_key; give it a field"):
        result.write()
