"""Which overrides may lower the memory of a stage."""

from __future__ import annotations

from support.configs import compose

from sparsemend.doctor.peaks import DEVICE, HOST
from sparsemend.doctor.remedies import REMEDIES, choices


def test_a_fit_that_holds_its_activations_is_given_checkpointing_first() -> None:
    cfg = compose("run")
    first = choices(cfg, "repair: fit", DEVICE)
    keys = [line for remedy in first for line in remedy.lines]
    assert "hardware.activation_checkpointing=true" in keys
    assert keys.index("hardware.activation_checkpointing=true") < keys.index(
        "hardware.micro_batch=1"
    )


def test_seft_is_shown_the_sensitivity_of_fewer_weights_as_one_that_alters_numbers() -> None:
    fit = choices(compose("run", ["method=seft"]), "repair: fit", DEVICE)
    altering = {line for remedy in fit if remedy.alters for line in remedy.lines}
    assert "method.sensitivity_gradient=candidates" in altering


def test_what_is_set_already_is_no_remedy() -> None:
    cfg = compose("run", ["hardware.activation_checkpointing=true"])
    keys = [line for remedy in choices(cfg, "repair: fit", DEVICE) for line in remedy.lines]
    assert "hardware.activation_checkpointing=true" not in keys


def test_a_key_that_the_method_lacks_is_no_remedy() -> None:
    cfg = compose("run", ["method=dsnot"])
    keys = [line for remedy in choices(cfg, "repair", HOST) for line in remedy.lines]
    assert not [key for key in keys if "init_linears_per_pass" in key]


def test_what_alters_numbers_comes_last() -> None:
    cfg = compose("run", ["model.dtype=float32"])
    alters = [bool(remedy.alters) for remedy in choices(cfg, "evaluate: dense", HOST)]
    assert alters == sorted(alters)
    assert alters[-1]


def test_every_remedy_names_a_key_of_some_configuration() -> None:
    configs = [compose("run", [f"method={name}"]) for name in ("lors", "seft")]
    for remedy in REMEDIES:
        stage = remedy.stages[0] or "load"
        changed = [remedy.serves(cfg, stage, remedy.device) for cfg in configs]
        same = {"model.dtype": "bfloat16"}.items() <= dict(remedy.values).items()
        assert any(changed) or same, remedy


def test_a_remedy_is_applied_to_a_copy() -> None:
    cfg = compose("run", ["hardware=gpu"])
    remedy = next(r for r in REMEDIES if "hardware.micro_batch" in r.values)
    assert remedy.apply(cfg).hardware.micro_batch == remedy.values["hardware.micro_batch"]
    assert cfg.hardware.micro_batch != remedy.values["hardware.micro_batch"]
