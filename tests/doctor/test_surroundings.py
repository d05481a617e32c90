"""What a run needs besides memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.configs import compose

from sparsemend.doctor.driver import driver_finding
from sparsemend.doctor.surroundings import (
    NoShape,
    compiler,
    data_places,
    examine_surroundings,
    file_system,
    model_files,
    settings,
    shapes_are_there,
)
from sparsemend.doctor.verdict import Verdict

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96}


@pytest.mark.parametrize(
    ("build", "text", "verdict"),
    [
        (None, DRIVER, Verdict.NO_GO),
        ("12.8", DRIVER, Verdict.GO),
        ("13.0", DRIVER, Verdict.NO_GO),
        ("12.8", "", Verdict.UNKNOWN),
        ("99.0", DRIVER, Verdict.UNKNOWN),
    ],
)
def test_the_build_of_torch_is_held_against_the_driver(
    build: str | None, text: str, verdict: Verdict
) -> None:
    assert driver_finding(build, text).verdict is verdict


def test_the_nearest_mount_tells_the_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n")
    assert file_system(Path("/data/runs"), mounts) == "nfs4"
    assert file_system(Path("/home"), mounts) == "ext4"
    assert file_system(Path("/home"), tmp_path / "absent") is None


def test_a_folder_with_a_config_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    cfg = compose("run", ["model=local", f"model.path={tmp_path}"])
    shapes_are_there(cfg)
    assert settings(cfg, tmp_path, pretended=True).verdict is Verdict.GO
    weights = next(iter(model_files(cfg)))
    assert (weights.what, weights.verdict) == ("weights", Verdict.GO)
    assert weights.says.endswith("has its config alone; the weights are to come")


def test_a_model_of_the_hub_that_is_not_cached_has_no_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NoShape, match=r"nobody/nothing is not in the hub's cache"):
        shapes_are_there(compose("run", ["model=local", "model.path=nobody/nothing"]))


@pytest.mark.parametrize(("offline", "verdict"), [("0", Verdict.UNKNOWN), ("1", Verdict.NO_GO)])
def test_a_model_to_be_downloaded_is_no_go_where_the_hub_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: str, verdict: Verdict
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    (weights,) = model_files(compose("run", ["model=local", "model.path=nobody/nothing"]))
    assert weights.verdict is verdict


@pytest.mark.parametrize(
    ("line", "inside", "says"),
    [
        ("sparsity=1.5", "run", "sparsity"),
        ("sparsity=${absent}", "run", "absent"),
        ("sparsity=0.5", "file/run", "hydra.run.dir"),
    ],
)
def test_what_the_command_refuses_is_no_go(
    line: str, inside: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    finding = settings(compose("run", [line]), tmp_path / inside, pretended=False)
    assert finding.verdict is Verdict.NO_GO
    assert says in finding.says


@pytest.mark.parametrize("member", ["zero_shot", "speed"])
def test_a_measurement_that_is_left_out_makes_a_go_unknown(member: str, tmp_path: Path) -> None:
    cfg = compose("run", [f"evaluation=[{member}]"])
    verdicts = {f.verdict for f in examine_surroundings(cfg, tmp_path, pretended=True)}
    assert Verdict.of_all(verdicts) is Verdict.UNKNOWN


def test_a_finished_run_to_be_measured_again_is_not_estimated() -> None:
    with pytest.raises(NoShape, match=r"cost\.evaluate\.peak_bytes"):
        shapes_are_there(compose("run", ["from_run=some/run"]))


def test_another_revision_than_the_cached_one_has_no_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    lines = ["model=local", "model.path=some/model"]
    shapes_are_there(compose("run", lines))
    with pytest.raises(NoShape):
        shapes_are_there(compose("run", [*lines, "model.revision=other"]))


def test_compiling_without_a_compiler_is_no_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("run", ["method.compile=true"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    (finding,) = compiler(cfg)
    assert finding.verdict is Verdict.NO_GO
    assert list(compiler(compose("run"))) == []


def test_a_data_file_that_is_missing_is_no_go(tmp_path: Path) -> None:
    here = tmp_path / "train.safetensors"
    here.touch()
    lines = [f"data.{k}={tmp_path}/absent" for k in ("calibration", "test")]
    cfg = compose("run", ["data=tokens", f"data.train={here}", *lines])
    verdicts = [finding.verdict for finding in data_places(cfg)]
    assert sorted(v.value for v in verdicts) == ["go", "no-go", "no-go"]
