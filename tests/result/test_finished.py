"""from_run: whose config is in force, what is carried over, and which folders are refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from support.configs import compose

from sparsemend.result.finished import check_apart, command_line, finished_run, resolve_from_run

PROTOCOL = {
    "corpus": "docs",
    "split": "test",
    "tokens": 64,
    "windows": 2,
    "seqlen": 32,
    "dtype": "float32",
    "data_hash": "ab" * 32,
}
COSTS = {"prune": 1.0, "evaluate": 5.0}


@pytest.fixture
def overrides(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Hydra says that this job's overrides are; filled by `composed`."""
    given: list[str] = []
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(
        HydraConfig, "get", staticmethod(lambda: OmegaConf.create({"overrides": {"task": given}}))
    )
    return given


def composed(given: list[str], *lines: str) -> DictConfig:
    given[:] = lines
    return compose("run", list(lines))


def stored_run(folder: Path, *lines: str, status: str = "finished", exported: bool = True) -> Path:
    config = OmegaConf.to_container(compose("run", list(lines)), resolve=True)
    content = {
        "schema": "sparsemend-result-1",
        "status": status,
        "config": config,
        "config_hash": "cd" * 32,
        "provenance": {"commit": "0123", "device": "cpu", "threads": 1},
        "protocol": PROTOCOL,
        "metrics": {"dense": {"a/b": 1.0}, "pruned": {"a/b": 3.0}, "repaired": {"a/b": 2.0}},
        "sparsity": {"per_linear": {"x": {"asked": 0.6, "achieved": 0.59}}},
        "repair": {"steps": 3},
        "cost": {stage: {"seconds": s, "peak_bytes": 1} for stage, s in COSTS.items()},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(lines)))
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {config_sources: []}}")
    (folder / "result.json").write_text(json.dumps(content))
    if exported:
        (folder / "model").mkdir()
        (folder / "model" / "masks.safetensors").write_text("")
    return folder


def test_the_config_is_the_runs_own_but_for_what_is_given(
    tmp_path: Path, overrides: list[str]
) -> None:
    made = ("method=dsnot", "sparsity=0.7", "pruner=sparsegpt", "seed=3", "model=llama2_7b")
    run = stored_run(tmp_path / "run", *made)
    cfg = resolve_from_run(
        composed(
            overrides, f"from_run={run}", "evaluation=[speed]", "export=true", "data=wikitext2"
        )
    )
    assert cfg.sparsity == 0.7
    assert cfg.seed == 3
    assert cfg.method._target_.endswith("DSnoT")
    assert cfg.pruner._target_.endswith("SparseGPT")
    assert list(cfg.evaluation) == ["speed"]
    assert cfg.export
    assert cfg.data.seqlen == 2048  # of the run's model, not of the default one


def test_what_is_not_given_is_the_runs_own(tmp_path: Path, overrides: list[str]) -> None:
    run = stored_run(tmp_path / "run", "evaluation=[speed]", "hardware=ddp", "export=true")
    cfg = resolve_from_run(composed(overrides, f"from_run={run}"))
    assert list(cfg.evaluation) == ["speed"]
    assert cfg.hardware.devices == 2
    assert not cfg.export


def test_a_run_from_before_a_key_of_its_model_trusts_no_foreign_code(
    tmp_path: Path, overrides: list[str]
) -> None:
    run = stored_run(tmp_path / "run")
    content = json.loads((run / "result.json").read_text())
    del content["config"]["model"]["trust_remote_code"]
    (run / "result.json").write_text(json.dumps(content))
    assert resolve_from_run(composed(overrides, f"from_run={run}")).model.trust_remote_code is False


def test_without_from_run_nothing_changes(overrides: list[str]) -> None:
    cfg = composed(overrides, "sparsity=0.5")
    assert resolve_from_run(cfg) is cfg


@pytest.mark.parametrize(
    "line", ["sparsity=0.5", "method=dsnot", "+pruner.masks=x", "model.dtype=bfloat16", "seed=1"]
)
def test_what_would_change_the_run_is_refused(
    line: str, tmp_path: Path, overrides: list[str]
) -> None:
    run = stored_run(tmp_path / "run")
    cfg = composed(overrides, f"from_run={run}")
    overrides.append(line)
    with pytest.raises(ValueError, match=r"is not for a run that is measured again"):
        resolve_from_run(cfg)


def test_dense_and_repaired_are_compared_in_the_dtype_of_the_export(
    tmp_path: Path, overrides: list[str]
) -> None:
    run = stored_run(tmp_path / "run", "model.dtype=float32", "export_dtype=bfloat16")
    cfg = resolve_from_run(composed(overrides, f"from_run={run}"))
    assert cfg.model.dtype == "bfloat16"
    assert cfg.export_dtype is None


def test_the_run_that_is_read_is_not_written_over(tmp_path: Path, overrides: list[str]) -> None:
    cfg = resolve_from_run(composed(overrides, f"from_run={stored_run(tmp_path / 'run')}"))
    check_apart(cfg, tmp_path / "other")
    with pytest.raises(ValueError, match=r"from_run=.* is, or lies in, hydra\.run\.dir"):
        check_apart(cfg, tmp_path / "other" / ".." / "run")


def test_a_model_is_not_removed_before_it_is_read(tmp_path: Path, overrides: list[str]) -> None:
    run = stored_run(tmp_path / "run")
    asked = ("model=local", f"model.path={run / 'model'}", "pruner=existing")
    cfg = composed(overrides, *asked)
    check_apart(cfg, tmp_path / "other")
    with pytest.raises(ValueError, match=r"model\.path=.* lies in, hydra\.run\.dir"):
        check_apart(cfg, run)


def test_a_key_alone_changes_what_the_run_had(tmp_path: Path, overrides: list[str]) -> None:
    run = stored_run(tmp_path / "run", "data=c4", "evaluation=[perplexity,speed]", "hardware=ddp")
    asked = ("data.seqlen=64", "evaluation.perplexity.validation=true", "hardware.threads=1")
    cfg = resolve_from_run(composed(overrides, f"from_run={run}", *asked))
    assert (cfg.data.name, cfg.data.seqlen) == ("c4", 64)
    assert list(cfg.evaluation) == ["perplexity", "speed"]
    assert cfg.evaluation.perplexity.validation
    assert (cfg.hardware.devices, cfg.hardware.threads) == (2, 1)
    chosen = resolve_from_run(composed(overrides, f"from_run={run}", "data=wikitext2", *asked))
    assert (chosen.data.name, chosen.data.seqlen) == ("wikitext2", 64)


def test_a_card_repeats_a_run_and_not_its_resumption(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", "method=dsnot", "resume=auto")
    assert finished_run(str(run)).command == "sparsemend method=dsnot"


def test_a_command_names_the_folders_of_configs_of_one_s_own() -> None:
    sources = [
        SimpleNamespace(path=path, provider=provider)
        for path, provider in (
            ("/repo/conf", "main"),
            ("my own", "command-line"),
            ("file://theirs", "hydra.searchpath in command-line"),
        )
    ]
    line = command_line(["pruner=obd", "hydra.searchpath=[x]"], sources)
    assert shlex.split(line) == [
        "sparsemend",
        "--config-dir",
        "my own",
        'hydra.searchpath=["file://theirs"]',
        "pruner=obd",
    ]


def test_a_model_that_has_moved_is_said_so_and_may_be_given_anew(
    tmp_path: Path, overrides: list[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run = stored_run(tmp_path / "run", "model=local", f"model.path={old}")
    with pytest.raises(FileNotFoundError, match=r"has moved, .*old does not exist; give"):
        resolve_from_run(composed(overrides, f"from_run={run}"))
    cfg = resolve_from_run(composed(overrides, f"from_run={run}", f"model.path={new}"))
    assert (cfg.model.path, cfg.model.name) == (str(new), "old")
    with pytest.raises(ValueError, match="is measured again"):
        resolve_from_run(composed(overrides, f"from_run={run}", "model.dtype=float32"))


def test_a_model_of_the_hub_or_the_package_has_not_moved(
    tmp_path: Path, overrides: list[str]
) -> None:
    for number, path in enumerate(("org/name", "embedded:tiny")):
        run = stored_run(tmp_path / str(number), "model=local", f"model.path={path}")
        assert resolve_from_run(composed(overrides, f"from_run={run}")).model.path == path


def test_resume_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    run = stored_run(tmp_path / "run")
    with pytest.raises(ValueError, match="nothing left to continue"):
        resolve_from_run(composed(overrides, f"from_run={run}", "resume=auto"))


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result\.json in it"):
        finished_run(str(tmp_path))


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", status="interrupted")
    with pytest.raises(ValueError, match="is interrupted, not finished; continue it with resume="):
        finished_run(str(run))


def test_a_run_that_kept_no_weights_says_how_to_repeat_it(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", "method=dsnot", exported=False)
    with pytest.raises(FileNotFoundError, match="sparsemend method=dsnot export=true"):
        finished_run(str(run))


def measured(evaluation: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """A result of the same protocol with nothing measured yet."""
    return {
        "status": "running",
        "config": {"evaluation": evaluation},
        "provenance": {"device": device, "threads": 1},
        "protocol": dict(PROTOCOL),
        "metrics": {},
        "cost": {},
    }


def carried(run: Path, **protocol: Any) -> dict[str, Any]:
    content = measured({"c": {}}) | {
        "protocol": PROTOCOL | protocol,
        "metrics": {"dense": {"c/d": 7.0}, "repaired": {"a/b": 2.5}},
        "cost": {"evaluate": {"seconds": 9.0}},
    }
    finished_run(str(run)).carry_over(content)
    return content


def test_metrics_of_the_same_protocol_stand_beside_new_ones(tmp_path: Path) -> None:
    content = carried(stored_run(tmp_path / "run"))
    assert content["metrics"] == {
        "dense": {"a/b": 1.0, "c/d": 7.0},
        "pruned": {"a/b": 3.0},
        "repaired": {"a/b": 2.5},
    }
    assert content["cost"]["prune"] == {"seconds": 1.0, "peak_bytes": 1}
    assert content["cost"]["evaluate"] == {"seconds": 9.0}
    assert content["repair"] == {"steps": 3}
    assert content["from_run"]["commit"] == "0123"


@pytest.mark.parametrize(
    ("settings", "device", "pruned"),
    [({"suite": "a"}, "cpu", 3.0), ({"suite": "b"}, "cpu", None), (None, "cuda", 3.0)],
)
def test_metrics_of_an_evaluation_asked_otherwise_are_left(
    tmp_path: Path, settings: dict[str, str] | None, device: str, pruned: float | None
) -> None:
    run = stored_run(tmp_path / "run")
    stored = json.loads((run / "result.json").read_text())
    stored["config"]["evaluation"] = {"a": {"suite": "a"}}
    stored["protocol"]["a"] = {"items": 5}
    (run / "result.json").write_text(json.dumps(stored))
    content = measured({} if settings is None else {"a": settings}, device)
    finished_run(str(run)).carry_over(content)
    assert content["metrics"]["pruned"].get("a/b") == pruned
    assert content["protocol"].get("a") == ({"items": 5} if pruned else None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_speeds_are_carried_over_from_the_same_machine_alone(tmp_path: Path, device: str) -> None:
    run = stored_run(tmp_path / "run")
    stored = json.loads((run / "result.json").read_text())
    stored["config"]["evaluation"] = {"speed": {}}
    stored["metrics"]["pruned"] = {"speed/csr/decode": 9.0}
    (run / "result.json").write_text(json.dumps(stored))
    content = measured({"speed": {}}, device)
    finished_run(str(run)).carry_over(content)
    assert bool(content["metrics"]["pruned"]) == (device == "cpu")


@pytest.mark.parametrize(
    "change", [{"seqlen": 64}, {"data_hash": "00" * 32}, {"dtype": "bfloat16"}]
)
def test_metrics_of_another_protocol_are_left_behind(
    change: dict[str, Any], tmp_path: Path
) -> None:
    metrics = carried(stored_run(tmp_path / "run"), **change)["metrics"]
    assert metrics == {"dense": {"c/d": 7.0}, "pruned": {}, "repaired": {"a/b": 2.5}}


def test_a_packed_run_is_measured_again_unless_its_values_were_rounded(tmp_path: Path) -> None:
    packed = ("export=true", "export_form=packed")
    run = stored_run(tmp_path / "packed", *packed)
    (run / "model" / "masks.safetensors").rename(run / "masks.safetensors")
    assert finished_run(str(run)).supports == run / "masks.safetensors"
    rounded = stored_run(tmp_path / "rounded", *packed, "export_values=int8")
    with pytest.raises(ValueError, match=r"rounded to int8 .*run it again with export_form=dense"):
        finished_run(str(rounded))
