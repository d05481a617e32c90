"""The card of an export: what the hub's own parser reads back, and every measured number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from sparsemend.checkpoint.card import metrics_table, model_card

METRICS = {
    "dense": {"perplexity/test": 15.0, "zero_shot/boolq": 0.75},
    "pruned": {"perplexity/test": 35.5},
    "repaired": {"perplexity/test": 18.25, "zero_shot/boolq": 0.7, "speed/csr/peak_bytes": 2e6},
}


def result(path: str = "embedded:tiny", **sparsity: Any) -> dict[str, Any]:
    cost = {"seconds": 1234.56, "peak_bytes": 3 * 2**20}
    return {
        "config": {
            "model": {"name": "tiny", "path": path, "revision": None},
            "pruner": {"_target_": "sparsemend.pruner.wanda.Wanda", "variant": False},
            "sparsity_schedule": {"_target_": "sparsemend.sparsity_schedule.uniform.Uniform"},
            "method": {"_target_": "sparsemend.method.masked_lora.MaskedLora", "rank": 8},
            "evaluation": {
                "perplexity": {"_target_": "sparsemend.evaluation.perplexity.Perplexity", "a": 1}
            },
            "seed": 7,
        },
        "sparsity": {
            "achieved": 0.598,
            "effective": 0.598,
            "target": 0.6,
            "pattern": "unstructured",
            "achieved_of_all_parameters": 0.5,
            "prunable_weights": 1000,
            "zeros": 598,
        }
        | sparsity,
        "protocol": {
            "corpus": "python_docs",
            "split": "test",
            "tokens": 52480,
            "windows": 205,
            "seqlen": 256,
            "dtype": "float32",
            "data_hash": "ab" * 32,
            "calibration_samples": 128,
            "zero_shot": {"harness": "lm-eval 0.4.13", "metric": "acc"},
        },
        "provenance": {
            "commit": "0123",
            "dirty": True,
            "packages": {"torch": "2.13"},
            "python": "3.11",
            "device": "cpu",
            "threads": 2,
        },
        "metrics": METRICS,
        "cost": {"prune": cost, "repair": cost | {"trained_parameters": 448512}},
    }


def test_the_hub_reads_the_front_matter() -> None:
    card = ModelCard(model_card(result(), "sparsemend"), ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "tiny"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["sparse", "pruned", "sparsemend"]


def test_names_that_yaml_would_read_otherwise_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "007"
    folder.mkdir()
    card = ModelCard(model_card(result(str(folder)), "sparsemend"))
    assert card.data.base_model == "007"
    assert card.data.license == "unknown"
    assert "unknown, see base model" in card.text


def test_a_folder_that_the_hub_has_no_name_for_is_named_in_the_table_alone(tmp_path: Path) -> None:
    folder = tmp_path / "my model (v2)"
    folder.mkdir()
    text = model_card(result(str(folder)), "command")
    assert ModelCard(text).data.base_model is None
    assert "| base model | `my model (v2)` |" in text


def test_every_number_has_its_row() -> None:
    text = model_card(result(), "sparsemend method=masked_lora seed=7")
    for row in (
        "| sparsity of prunable weights | 0.598000 (asked 0.6) |",
        "| prunable weights that are not zero | 402 of 1,000 |",
        "| licence of the base model | apache-2.0 (its model card) |",
        "| corpus | python_docs |",
        "| tokens per window | 256 |",
        f"| SHA-256 of the data | {'ab' * 32} |",
        "| evaluation | `Perplexity(a=1)` |",
        "| zero_shot | harness lm-eval 0.4.13, metric acc |",
        "| seed | 7 |",
        "| device | cpu, 2 threads |",
        "| repair | 1,234.6 | 3 |",
        "Trained parameters: 448,512.",
        "```\nsparsemend method=masked_lora seed=7\n```",
        "commit 0123, with uncommitted changes with torch 2.13",
    ):
        assert row in text


def test_states_are_compared_with_the_dense_model() -> None:
    assert metrics_table(METRICS).splitlines() == [
        "| metric | dense | pruned | repaired | difference |",
        "|---|---:|---:|---:|---:|",
        "| perplexity/test | 15.0000 | 35.5000 | 18.2500 | +3.2500 |",
        "| zero_shot/boolq | 0.7500 | - | 0.7000 | -0.0500 |",
        "| speed/csr/peak_bytes | - | - | 2,000,000 | - |",
    ]


def test_what_overflowed_has_no_difference() -> None:
    table = metrics_table({"dense": {"a": 1.0}, "repaired": {"a": None}})
    assert table.splitlines()[2] == "| a | 1.0000 | not finite | - |"


def test_linears_that_stay_dense_are_named_with_the_reason() -> None:
    reason = "no calibration token reached it"
    dense = {f"model.layers.{block}.mlp.experts.3.up_proj": reason for block in range(2)}
    every = [f"model.layers.{b}.mlp.experts.{e}.up_proj" for b in range(2) for e in range(8)]
    text = model_card(result(stays_dense=dense, per_linear=dict.fromkeys(every)), "sparsemend")
    assert f"Of them 2 stay dense ({reason}): `model.layers.*.mlp.experts.3.up_proj`." in text
    assert "stay dense" not in model_card(result(), "sparsemend")


@pytest.mark.parametrize(("effective", "said"), [(0.598, False), (0.0, True)])
def test_an_adapter_beside_the_weights_is_announced(effective: float, said: bool) -> None:
    text = model_card(result(effective=effective), "sparsemend")
    assert ("sparse base alone" in text) == said
