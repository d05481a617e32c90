"""Sweeps: finished cells are not run twice, failed ones are recorded, one table ends it all."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from support.configs import compose

from sparsemend.preflight.cache import check_cache
from sparsemend.preflight.declared import check_declared
from sparsemend.result.folder import alive
from sparsemend.result.record import Result
from sparsemend.result.sections import ProcessId
from sparsemend.sweep import cells

SWEEP = ("-m", "sparsity=0.5,0.6", "method=none,dsnot")
PAIR = ("-m", "sparsity=0.5,0.6")


def failing_at(sparsity: float) -> Any:
    def run(cfg: DictConfig) -> float:
        if cfg.sparsity == sparsity:
            raise FloatingPointError("loss is NaN")
        return 10.0 * cfg.sparsity

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "summary.csv").open()))


def test_the_summary_has_a_line_per_cell_with_what_varies(command, tmp_path) -> None:
    code, _ = command(*SWEEP, "hydra.sweep.dir=out", run=lambda cfg: 10 * cfg.sparsity)
    assert code == 0
    table = rows(tmp_path / "out")
    assert [(r["cell"], r["sparsity"], r["method"], r["status"]) for r in table] == [
        ("0", "0.5", "none", "finished"),
        ("1", "0.5", "dsnot", "finished"),
        ("2", "0.6", "none", "finished"),
        ("3", "0.6", "dsnot", "finished"),
    ]
    assert [float(r["repaired/perplexity/test"]) for r in table] == [5, 5, 6, 6]


@pytest.mark.parametrize(
    "lines", [PAIR, ("-m", "+search=rank", "method=lors", "search.points=[2,4]")]
)
def test_two_jobs_that_upload_to_one_repository_are_refused_before_either(
    lines: tuple[str, ...], command, tmp_path, capsys
) -> None:
    push = "export_push=me/mended"
    code, seen = command(*lines, "export=true", push, "hydra.sweep.dir=out")
    assert (code, seen) == (1, [])
    err = capsys.readouterr().err
    assert "export_push=me/mended would be uploaded by 2 jobs, each over the one before" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    each = "${method.rank}" if "+search=rank" in lines else "${sparsity}"
    code, seen = command(*lines, "export=true", f"{push}-{each}", "hydra.sweep.dir=out")
    assert code == 0
    assert len({cfg.export_push for cfg in seen}) == 2


def test_a_failed_cell_is_recorded_and_does_not_stop_the_rest(command, tmp_path, capsys) -> None:
    code, seen = command(*PAIR, "hydra.sweep.dir=out", run=failing_at(0.5))
    assert (code, len(seen)) == (1, 2)
    assert [r["status"] for r in rows(tmp_path / "out")] == ["failed", "finished"]
    assert rows(tmp_path / "out")[0]["error"] == "loss is NaN"
    assert "1 of 2 cells did not finish" in capsys.readouterr().out


def test_cells_of_swept_names_lie_in_the_sweeps_folder(command, tmp_path) -> None:
    code, _ = command("-m", "name=a,b", run=lambda cfg: 1.0)
    assert code == 0
    (folder,) = (path.parent for path in tmp_path.rglob("summary.csv"))
    assert folder.parent == tmp_path / "multirun" / "default"
    assert [(r["name"], r["status"]) for r in rows(folder)] == [
        ("a", "finished"),
        ("b", "finished"),
    ]


def test_a_sweep_over_names_is_found_to_be_resumed(command, tmp_path) -> None:
    def failing(cfg: DictConfig) -> float:
        if cfg.name == "b":
            raise FloatingPointError("loss is NaN")
        return 1.0

    command("-m", "name=a,b", run=failing)
    code, seen = command("-m", "name=a,b", "resume=auto", run=lambda cfg: 1.0)
    assert (code, [cfg.name for cfg in seen]) == (0, ["b"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.sweep.subdir=${sparsity}/${hydra:job.num}", "hydra.sweep.subdir=${sparsity}/"),
        ("hydra.output_subdir=null", "hydra.output_subdir=null would hide the cells"),
    ],
)
def test_a_sweep_that_would_hide_its_cells_is_refused_before_its_first_job(
    command, tmp_path, capsys, override: str, said: str
) -> None:
    code, seen = command(*PAIR, "hydra.sweep.dir=out", override)
    assert (code, seen, (tmp_path / "out").exists()) == (2, [], False)
    assert said in capsys.readouterr().err


def test_a_launcher_that_fails_is_one_line(command, capsys, monkeypatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        json.loads("{}", object_pairs_hook=lambda pairs: pairs.srun)

    monkeypatch.setattr("hydra._internal.core_plugins.basic_launcher.BasicLauncher.launch", fail)
    code, seen = command(*PAIR, "hydra.sweep.dir=out")
    assert (code, seen) == (1, [])
    said = capsys.readouterr().err
    assert said.startswith("error: hydra/launcher (BasicLauncher): AttributeError: ")
    assert "Traceback" not in said


@pytest.mark.slow  # a killed search runs the missing trials alone
def test_started_again_it_runs_the_broken_cells_alone(command, tmp_path) -> None:
    command(*SWEEP, "hydra.sweep.dir=out", run=failing_at(0.5))
    code, seen = command(*SWEEP, "hydra.sweep.dir=out", run=lambda cfg: 1.0)
    assert (code, [cfg.sparsity for cfg in seen]) == (0, [0.5, 0.5])
    values = [float(r["repaired/perplexity/test"]) for r in rows(tmp_path / "out")]
    assert values == [1, 1, 6, 6]  # the finished ones kept theirs


@pytest.mark.slow  # a killed search goes on in the default tier
def test_resume_auto_finds_the_newest_unfinished_sweep_of_the_same_overrides(
    command, tmp_path, monkeypatch
) -> None:
    def begin(*arguments: str, number: int, run: Any = lambda cfg: 1.0) -> list[DictConfig]:
        """Jobs of a process of its own, so that sweeps of one second have folders of their own."""
        monkeypatch.setattr(os, "getpid", lambda: 2**22 + number)  # above what Linux gives
        return command(*arguments, run=run)[1]

    begin(*PAIR, number=1, run=failing_at(0.6))
    (folder,) = (tmp_path / "multirun" / "default").iterdir()
    assert len(begin("-m", "sparsity=0.5,0.7", "resume=auto", number=2)) == 2
    assert [cfg.sparsity for cfg in begin(*PAIR, "resume=auto", number=3)] == [0.6]
    assert len(list((tmp_path / "multirun" / "default").iterdir())) == 2
    assert {r["status"] for r in rows(folder)} == {"finished"}
    # that one is finished, so this is a new sweep
    assert len(begin(*PAIR, "resume=auto", number=4)) == 2


@pytest.mark.slow  # `alive` is tested with single runs
def test_resume_auto_does_not_join_a_sweep_that_still_runs(command, capsys) -> None:
    command(*PAIR, run=failing_at(0.6))
    (note,) = Path("multirun/default").glob("*/sweep.json")
    running = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # which waits for its input's end
    content = {**json.loads(note.read_text()), "status": "running"}
    content["process"]["pid"] = running.pid
    note.write_text(json.dumps(content))
    code, seen = command(*PAIR, "resume=auto")
    assert (code, seen) == (1, [])
    assert f"still runs (process {running.pid}" in capsys.readouterr().err
    running.kill()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie
    assert not alive(content["status"], ProcessId.from_json(content["process"]))
    _, seen = command(*PAIR, "resume=auto", run=lambda cfg: 1.0)
    assert [cfg.sparsity for cfg in seen] == [0.6]
    running.communicate()


def test_a_sweep_in_the_folder_of_another_is_refused_before_its_first_job(
    command, tmp_path, capsys
) -> None:
    command(*PAIR, "hydra.sweep.dir=out", run=lambda cfg: 1.0)
    code, seen = command("-m", "sparsity=0.5,0.7", "hydra.sweep.dir=out")
    assert (code, seen) == (1, [])
    said = capsys.readouterr().err
    assert "out/1 holds a cell of another sweep (sparsity: 0.6 there, 0.7 here)" in said


def test_resuming_a_sweep_by_the_folder_of_a_run_is_refused(command, capsys) -> None:
    code, seen = command("-m", "sparsity=0.5,0.6", "resume=multirun/x/0")
    assert (code, seen) == (1, [])
    assert "a sweep continues with resume=auto" in capsys.readouterr().err


def test_a_sweep_of_which_no_job_can_begin_is_refused_at_once(
    command, monkeypatch, capsys, tmp_path
) -> None:
    monkeypatch.setattr("sparsemend.cli.main.preflight.check", check_declared)
    code, seen = command("-m", "sparsity=1.5,2", "hydra.sweep.dir=out")
    assert (code, seen, (tmp_path / "out").exists()) == (1, [], False)
    assert "sparsity=1.5 is not in [0, 1)" in capsys.readouterr().err
    code, seen = command("-m", "sparsity=1.5,0.5", "hydra.sweep.dir=out")
    assert (code, [cfg.sparsity for cfg in seen]) == (1, [0.5])
    assert json.loads((tmp_path / "out/0/result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cache.dir=file/cache", "file is no folder"),
        ("cache.dir=closed/cache", "is not writable"),
        ("cache.when=often", "not one of sweep, always"),
        ("statistics=guess", "not one of exact, dense"),
    ],
)
def test_a_cache_that_cannot_be_written_is_refused_before_the_first_job(
    command, monkeypatch, capsys, tmp_path, given: str, message: str
) -> None:
    monkeypatch.setattr("sparsemend.cli.main.preflight.check", check_declared)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    may = os.access  # a superuser may write anywhere, so the answer is given here
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "closed" and may(path, mode)
    )
    code, seen = command("-m", "sparsity=0.5,0.6", given)
    assert (code, seen) == (1, [])
    assert message in capsys.readouterr().err


def test_a_cache_without_room_is_refused_with_the_size(command, monkeypatch, capsys) -> None:
    usage = type("usage", (), {"free": 40 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    methods = ("method=none", "method=dsnot")  # two models of 8 MiB for the four cells
    jobs = [compose("run", [f"sparsity={s}", m]) for s in (0.5, 0.6) for m in methods]
    check_cache(jobs)
    usage.free = 10 * 2**20
    code, seen = command(*PAIR, "hydra.sweep.dir=out")
    assert (code, seen) == (1, [])
    assert "has 0.01 GiB free" in (said := capsys.readouterr().err)
    assert "cache.models=false" in said
    check_cache([compose("run", ["sparsity=0.5", "cache=off"])])


def test_an_objective_that_is_not_finite_reads_as_none(command, tmp_path) -> None:
    code, _ = command("-m", "sparsity=0.5,0.6", "hydra.sweep.dir=out", run=lambda cfg: math.inf)
    assert code == 0
    assert rows(tmp_path / "out")[0]["repaired/perplexity/test"] == ""


def test_every_spelling_of_what_is_no_part_of_a_sweep_is_left_out_of_its_identity() -> None:
    lines = ["seed=0,1", "++resume=auto", "++hydra.sweep.dir=a", "+hydra/launcher=x", "hydra.b=c"]
    assert cells.identity(lines) == ["seed=0,1", "+hydra/launcher=x"]


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"sparsity": 0.5})
    result = Result(tmp_path / "result.json", cfg)
    result.content["process"]["pid"] = os.getppid()
    result.write()
    before = (tmp_path / "result.json").read_bytes()
    seen: list[DictConfig] = []
    assert math.isnan(cells.run_cell(cfg, tmp_path, seen.append, seen.append))  # type: ignore[arg-type]
    assert (seen, (tmp_path / "result.json").read_bytes()) == ([], before)
    result.content["process"]["host"] = "elsewhere"
    result.write()
    assert cells.run_cell(cfg, tmp_path, seen.append, lambda cfg: 2.0) == 2.0


COMMAND = """
import os, subprocess, sys
os.environ["SPARSEMEND_RUN_ID"] = str(os.getpid())
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
WORKER = """
import sys, threading
from sparsemend.sweep import cells
cells.end_with_command()
cells.end_with_command()
print([thread.name for thread in threading.enumerate()].count(cells.WATCH), flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_a_worker_ends_with_the_command_that_was_killed() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, WORKER], stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "1\n"  # one watch
    command.kill()
    assert command.stdout.read() == ""  # the pipe ends with the last process that has it


def test_no_process_but_a_worker_ends_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_RUN_ID", str(os.getpid()))
    cells.end_with_command()
    assert cells.WATCH not in [thread.name for thread in threading.enumerate()]
