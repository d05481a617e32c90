import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sparsemend.config.values import config_hash, differences
from sparsemend.names import PARTS
from sparsemend.result.record import Result
from sparsemend.result.resume import find_unfinished, forget_work, last_checkpoint, run_folder

CONFIG = OmegaConf.create({"sparsity": 0.6, "name": "a", "resume": None})


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


@pytest.fixture
def on_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """A run of SLURM job 7 on node one; then this process is on node two, as job and start say."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(platform, "node", lambda: "one")
    result = Result(tmp_path / "run" / "result.json", CONFIG)
    result.write()

    def move(job: str, start: str) -> str:
        monkeypatch.setattr(platform, "node", lambda: "two")
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", start)
        return str(result.content["config_hash"])

    return move


def test_a_job_that_its_cluster_starts_anew_on_another_node_goes_on(
    tmp_path: Path, on_another_node: Callable[[str, str], str]
) -> None:
    assert find_unfinished(tmp_path, on_another_node("7", "1")) == tmp_path / "run"


@pytest.mark.parametrize(("job", "start"), [("8", "1"), ("7", "0")], ids=["another", "same"])
def test_a_run_on_another_node_is_left_alone_and_named(
    tmp_path: Path,
    on_another_node: Callable[[str, str], str],
    caplog: pytest.LogCaptureFixture,
    job: str,
    start: str,
) -> None:
    """Whether that of another job has ended cannot be seen; one of the same start has not."""
    assert find_unfinished(tmp_path, on_another_node(job, start)) is None
    assert "running on one, which cannot be seen from here: if it has ended, go on with it by" in (
        caplog.text
    )


def test_a_run_whose_number_went_to_a_younger_process_is_dead(tmp_path: Path) -> None:
    """As in a container that is started anew, whose processes have the numbers they had."""
    result = Result(tmp_path / "run" / "result.json", CONFIG)
    result.content["process"]["pid"] = os.getppid()
    result.write()
    os.utime(tmp_path / "run" / "result.json", (1000, 1000))
    assert find_unfinished(tmp_path, result.content["config_hash"]) == tmp_path / "run"


def test_a_run_of_another_user_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    result = Result(tmp_path / "run" / "result.json", CONFIG)
    result.content["process"]["pid"] = os.getpid() + 1
    result.write()
    monkeypatch.setattr(os, "kill", refuse)
    assert find_unfinished(tmp_path, result.content["config_hash"]) is None


def unfinished(folder: Path, config: dict) -> None:
    """A run of `config` that was killed in training."""
    result = Result(folder / "result.json", OmegaConf.create(config))
    result.content["process"]["pid"] = 2**22 + 1
    result.content["cost"] = {"load": {"seconds": 1.5, "peak_bytes": 7}}
    result.write()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")


WANTED = {"sparsity": 0.6, "method": {"rank": 16}, "name": "a", "resume": "auto"}


def test_a_run_continues_in_the_folder_of_its_unfinished_twin(tmp_path: Path) -> None:
    unfinished(tmp_path / "a" / "old", WANTED)
    folder, resumed = run_folder("auto", WANTED, tmp_path / "a" / "new")
    assert (folder, resumed) == (tmp_path / "a" / "old", True)
    assert last_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("newest", ["one", "two"])
def test_of_two_unfinished_twins_the_newest_continues(tmp_path: Path, newest: str) -> None:
    for name in ("one", "two"):
        unfinished(tmp_path / name, WANTED)
        seconds = 2000 if name == newest else 1000
        os.utime(tmp_path / name / "result.json", (seconds, seconds))
    assert find_unfinished(tmp_path, config_hash(WANTED)) == tmp_path / newest


@pytest.mark.parametrize(
    ("left", "resumed"), [("block_0.safetensors", True), (".block_0.safetensors.7.partial", False)]
)
def test_a_finished_part_alone_is_worth_continuing(
    tmp_path: Path, left: str, resumed: bool
) -> None:
    unfinished(tmp_path, WANTED)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / PARTS).mkdir()
    (tmp_path / PARTS / left).write_bytes(b"")
    assert run_folder("auto", WANTED, tmp_path) == (tmp_path, resumed)
    if resumed:
        assert run_folder(str(tmp_path), WANTED, tmp_path) == (tmp_path, True)
        return
    with pytest.raises(FileNotFoundError, match="ended before it finished a stage"):
        run_folder(str(tmp_path), WANTED, tmp_path)


def test_a_fresh_run_in_an_old_folder_leaves_nothing_to_continue(tmp_path: Path) -> None:
    unfinished(tmp_path, WANTED)
    (tmp_path / PARTS).mkdir()
    (tmp_path / PARTS / "block_0.safetensors").write_bytes(b"")
    forget_work(tmp_path)
    assert run_folder("auto", WANTED, tmp_path) == (tmp_path, False)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


OUTPUTS = (
    "model/masks.safetensors",
    "model/model.safetensors",
    "adapter/adapter_config.json",
    "training/metrics.csv",
    "training-2/metrics.csv",
    "window_losses/dense.safetensors",
    "zero_shot/dense.json",
    "masks.safetensors",
    "wandb_run_id",
)


def test_what_an_earlier_run_left_is_not_taken_for_a_fresh_ones(tmp_path: Path) -> None:
    unfinished(tmp_path, WANTED)
    kept = [tmp_path / name for name in ("result.json", "run.log", ".hydra/config.yaml", "own/a")]
    for path in (*kept[1:], *(tmp_path / name for name in OUTPUTS)):
        put(path)
    forget_work(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_a_folder_without_a_run_and_a_users_own_model_are_left_alone(tmp_path: Path) -> None:
    for name in OUTPUTS:
        put(tmp_path / name)
    forget_work(tmp_path)
    assert all((tmp_path / name).exists() for name in OUTPUTS)
    put(tmp_path / "result.json")
    (tmp_path / "model" / "masks.safetensors").unlink()
    forget_work(tmp_path)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_named_folder_whose_run_may_be_alive_is_not_started_afresh(tmp_path: Path) -> None:
    unfinished(tmp_path, WANTED)
    content = json.loads((tmp_path / "result.json").read_text())
    content["process"] = {"host": "another", "pid": 7}
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"running on another, process 7.*resume={tmp_path}"):
        run_folder("auto", WANTED, tmp_path)
    assert run_folder(str(tmp_path), WANTED, tmp_path / "fresh") == (tmp_path, True)


def test_what_the_killed_attempt_cost_is_kept(tmp_path: Path) -> None:
    unfinished(tmp_path, WANTED)
    again = Result(tmp_path / "result.json", OmegaConf.create(WANTED), resumed=True)
    assert again.content["earlier_attempts"] == [{"load": {"seconds": 1.5, "peak_bytes": 7}}]
    again.write()
    third = Result(tmp_path / "result.json", OmegaConf.create(WANTED), resumed=True)
    assert len(third.content["earlier_attempts"]) == 2


def test_nested_differences_are_named_with_both_values() -> None:
    other = {**WANTED, "method": {"rank": 8, "alpha": 1}}
    assert differences(WANTED, other) == [
        "method.alpha: nothing there, 1 here",
        "method.rank: 16 there, 8 here",
    ]


def test_resuming_a_run_of_another_config_names_the_keys(tmp_path: Path) -> None:
    unfinished(tmp_path, {**WANTED, "method": {"rank": 8}})
    with pytest.raises(ValueError, match=r"another configuration \(method\.rank: 8 there, 16 here"):
        run_folder(str(tmp_path), WANTED, tmp_path / "fresh")


def test_a_named_folder_with_another_run_is_not_overwritten_by_auto(tmp_path: Path) -> None:
    unfinished(tmp_path, {**WANTED, "sparsity": 0.5})
    with pytest.raises(ValueError, match=r"sparsity: 0\.5 there, 0\.6 here"):
        run_folder("auto", WANTED, tmp_path)


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    unfinished(tmp_path, WANTED)
    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**content, "status": "finished"}))
    with pytest.raises(ValueError, match="that run is finished"):
        run_folder(str(tmp_path), WANTED, tmp_path / "fresh")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result\.json in it; give a run folder"):
        run_folder(str(tmp_path), WANTED, tmp_path / "fresh")


def test_a_run_does_not_begin_in_the_folder_of_one_that_is_alive(tmp_path: Path) -> None:
    result = Result(tmp_path / "result.json", CONFIG)
    result.content["process"]["pid"] = os.getppid()
    result.write()
    with pytest.raises(ValueError, match="cannot be seen to have ended; wait for it"):
        run_folder(None, WANTED, tmp_path)
    result.content["process"]["host"] = "elsewhere"
    result.write()
    assert run_folder(None, WANTED, tmp_path) == (tmp_path, False)
