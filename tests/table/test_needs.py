import json
from dataclasses import replace

import pytest

from sparsemend.config.locations import PACKAGE
from sparsemend.table.experiments import experiments
from sparsemend.table.job import Job
from sparsemend.table.needs import Machine, Needs, needs_of, shapes


def job(**values: object) -> Job:
    base = experiments()[0].jobs[0]
    return replace(base, values={**base.values, "method": "none", **values})


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama2_7b", 6.738),
        ("llama2_70b", 68.98),
        ("llama3_8b", 8.030),
        ("opt_125m", 0.1252),
        ("llama3_70b", 70.55),
        ("mistral_7b_v0_3", 7.248),
        ("qwen2_7b", 7.616),
        ("opt_30b", 29.97),
        ("opt_2_7b", 2.652),
        ("qwen3_8b", 8.191),
        ("qwen3_4b", 4.022),
    ],
)
def test_parameters_are_the_public_counts(model: str, billions: float) -> None:
    # norms and biases are left out: below 0.1 %
    assert shapes()[model].parameters / 1e9 == pytest.approx(billions, rel=1.5e-3)


def test_the_tiny_shape_is_the_shipped_config() -> None:
    config = json.loads((PACKAGE / "assets" / "tiny" / "config.json").read_text())
    tiny = shapes()["tiny"]
    assert (tiny.blocks, tiny.hidden, tiny.intermediate, tiny.vocabulary) == (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
    )


def test_prunable_weights_of_llama2_7b() -> None:
    assert shapes()["llama2_7b"].prunable == 6_476_005_376


def test_measuring_needs_the_weights_and_the_logits() -> None:
    needs = needs_of(job(model="llama2_7b"))
    assert needs is not None
    expected = 2 * shapes()["llama2_7b"].parameters + 2e9 + 4096 * 32000 * 4
    assert needs.bytes == pytest.approx(expected)


def test_training_needs_more_memory_and_time() -> None:
    plain = needs_of(job(model="llama2_7b"))
    training = {"method": "masked_lora", "method.max_steps": 10, "windows_per_step": 8}
    trained = needs_of(job(model="llama2_7b", **training))
    assert plain is not None
    assert trained is not None
    assert trained.bytes > plain.bytes
    steps = 6.0 * shapes()["llama2_7b"].parameters * 10 * 8 * 2048
    assert trained.flops - plain.flops == pytest.approx(steps)


def test_reconstruction_trains_one_block_at_a_time() -> None:
    by_block, whole = (
        needs_of(job(model="llama2_70b", method=m)) for m in ("reconstruct", "masked_lora")
    )
    plain = needs_of(job(model="llama2_70b"))
    assert by_block is not None
    assert whole is not None
    assert plain is not None
    assert plain.bytes <= by_block.bytes < whole.bytes / 2
    epochs = 10 * 6.0 * shapes()["llama2_70b"].prunable * 128 * 2048
    assert by_block.flops - plain.flops == pytest.approx(epochs)


def test_training_windows_and_calibration_are_the_datas_own() -> None:
    short = {"method": "masked_lora", "method.max_steps": 10, "windows_per_step": 8}
    one, other = (
        needs_of(job(model="llama2_7b", **short, **{"data.seqlen": n})) for n in (512, None)
    )
    assert one is not None
    assert other is not None
    saved = 6.0 * shapes()["llama2_7b"].parameters * 10 * 8 * (2048 - 512)
    assert other.flops - one.flops == pytest.approx(saved)
    found = {e.name: e.jobs[0].values for e in experiments()}
    assert found["lors/alpaca_gpt4"]["data.seqlen"] == 512
    assert found["ebft/abstract"]["data.calibration_samples"] == 256
    assert found["dsnot/table1"]["data.seqlen"] is None


def test_a_model_of_unknown_size_has_no_estimate() -> None:
    assert needs_of(job(model="mine")) is None


def test_runnable_is_what_fits_and_ends_within_a_day() -> None:
    machine = Machine("gpu", 10, 1.0)
    assert machine.can_run(Needs(10, 86400))
    assert not machine.can_run(Needs(11, 1))
    assert not machine.can_run(Needs(1, 86401))
