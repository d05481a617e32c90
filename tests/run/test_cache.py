"""Entries are computed once and whole, also when jobs run beside each other or are killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsemend.run.cache import CONTENT, TENSORS, Cache, Content

PARTS = {"sparsity": 0.5}


def cache(folder: Path) -> Cache:
    return Cache(folder, owner=Path("run"))


class Counter:
    """A computation that says how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Content:
        self.count += 1
        tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([True, False])}
        return Content({"rate": 0.1 + 0.2}, tensors)


def entry(folder: Path) -> Path:
    return next(path for path in (folder / "pruned").iterdir() if path.is_dir())


def test_the_second_asker_gets_the_first_ones_bits_and_its_cost(tmp_path: Path) -> None:
    compute = Counter()
    made = cache(tmp_path).once("pruned", PARTS, compute)
    found = Cache(tmp_path, owner=Path("other")).once("pruned", dict(PARTS), compute)
    assert (made.hit, found.hit, compute.count) == (False, True, 1)
    assert found.content.values == {"rate": 0.1 + 0.2}
    for name, tensor in compute().tensors.items():
        assert torch.equal(found.content.tensors[name], tensor)
    assert (found.seconds, found.made_by) == (made.seconds, "run")


def test_another_value_of_any_part_is_another_entry(tmp_path: Path) -> None:
    compute = Counter()
    cache(tmp_path).once("pruned", PARTS, compute)
    cache(tmp_path).once("pruned", {"sparsity": 0.6}, compute)
    assert compute.count == 2


@pytest.mark.parametrize("file", [CONTENT, TENSORS])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_broken_entry_is_noticed_and_computed_again(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    compute = Counter()
    cache(tmp_path).once("pruned", PARTS, compute)
    path = entry(tmp_path) / file
    data = path.read_bytes()
    if damage == "flip":
        at = data.index(b"0.3000") if file == CONTENT else len(data) - 2
        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    path.unlink()
    if damage != "remove":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with caplog.at_level(logging.WARNING):
        found = cache(tmp_path).once("pruned", PARTS, compute)
    assert (found.hit, compute.count) == (False, 2)
    assert "computing it again" in caplog.text
    assert cache(tmp_path).once("pruned", PARTS, compute).hit


def test_what_cannot_be_written_is_computed_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsemend.run.cache.save_file", full)
    with caplog.at_level(logging.WARNING):
        assert cache(tmp_path).once("pruned", PARTS, Counter()).content.values["rate"] > 0.3
    assert "No space left" in caplog.text
    assert [path.suffix for path in (tmp_path / "pruned").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_locked_costs_time_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsemend.run.cache.FileLock.acquire", full)
    with caplog.at_level(logging.WARNING):
        entry = cache(tmp_path).once("scores", PARTS, lambda: Content({"scores": [1.5]}))
    assert (entry.hit, entry.content.values) == (False, {"scores": [1.5]})
    assert "nothing is shared" in caplog.text


def test_a_failed_computation_leaves_no_entry(tmp_path: Path) -> None:
    def fail() -> Content:
        raise FloatingPointError("NaN")

    with pytest.raises(FloatingPointError):
        cache(tmp_path).once("pruned", PARTS, fail)
    compute = Counter()
    assert not cache(tmp_path).once("pruned", PARTS, compute).hit


WORKER = '''
"""Asks for one entry; notes each computation; stops half-way through writing if told.

It says that it writes, or that it waits for another to write, when it does.
"""
import logging, sys
from pathlib import Path
import torch
from sparsemend.run import cache

folder, hang = Path(sys.argv[1]), sys.argv[2] == "hang"

def compute():
    with (folder / "computed").open("a") as file:
        file.write("x")
    return cache.Content({"made": 1}, {"a": torch.arange(1000)})

if hang:
    def save(tensors, path):
        path.write_bytes(b"half of it")
        print("writing", flush=True)
        sys.stdin.read()  # until it is killed
    cache.save_file = save

class Says(logging.Handler):
    def emit(self, record):
        print(record.getMessage().rpartition(", ")[2], flush=True)

cache.log.setLevel(logging.INFO)
cache.log.addHandler(Says())
found = cache.Cache(folder, owner=Path("run")).once("pruned", {"k": 1}, compute)
assert torch.equal(found.content.tensors["a"], torch.arange(1000))
print("hit" if found.hit else "computed")
'''


def worker(script: Path, folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """The next that a worker says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow  # the rules of one process are above, and a writer that failed is one of them
def test_two_jobs_on_one_key_one_killed_while_writing(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    killed = worker(script, tmp_path, "hang")
    assert line(killed) == "writing"
    waiting = worker(script, tmp_path, "ask")
    assert line(waiting) == "waiting"  # the other holds the lock
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    third = worker(script, tmp_path, "ask")
    # the third may come while the second computes, and then says that it waits
    last = [p.communicate(timeout=600)[0].split()[-1] for p in (waiting, third)]
    assert sorted(last) == ["computed", "hit"]
    assert (tmp_path / "computed").read_text() == "xx"  # the killed one's, then one for both
    assert json.loads((entry(tmp_path) / CONTENT).read_text())["values"] == {"made": 1}
    assert not list((tmp_path / "pruned").glob(".*"))
