"""The memory that a process may take is what machine and control groups leave."""

from pathlib import Path

import pytest

from sparsemend.blocks import room

GIB = 2**30


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay(tmp_path, {"meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * GIB // 1024} kB\n", "own": ""})
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(room, "GROUPS", tmp_path / "cgroup")
    return tmp_path


def test_without_a_limit_it_is_what_the_machine_has(system: Path) -> None:
    lay(system / "cgroup", {"memory.max": "max", "memory.current": "5"})
    lay(system, {"own": "0::/\n"})
    assert room.available_bytes() == 8 * GIB


def test_a_limit_above_this_group_counts_and_cached_files_do_not(system: Path) -> None:
    lay(system, {"own": "0::/job/step\n"})
    group = {
        "memory.max": str(4 * GIB),
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon 7\ninactive_file {GIB}\n",
    }
    lay(system / "cgroup/job", group)
    assert room.available_bytes() == 2 * GIB


def test_the_older_control_groups_are_read_where_a_container_hides_the_path(system: Path) -> None:
    lay(system, {"own": "4:memory:/hidden/path\n1:cpu:/\n0::/\n"})
    group = {
        "memory.limit_in_bytes": str(3 * GIB),
        "memory.usage_in_bytes": str(GIB),
        "memory.stat": "total_inactive_file 0\n",
    }
    lay(system / "cgroup/memory", group)
    assert room.available_bytes() == 2 * GIB


def test_where_nothing_tells_there_is_no_number(system: Path) -> None:
    (system / "meminfo").unlink()
    assert room.available_bytes() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident sizes are Linux's")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Where the C library has no call for it, nothing happens and nothing fails."""

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    pieces = [bytearray(b"x" * 2**16) for _ in range(2000)]  # below what is mapped by itself
    last = pieces[-1]
    full = resident()
    pieces.clear()
    room.return_freed()
    if room._malloc_trim() is not None:
        assert resident() < full - 100 * 2**16
    assert len(last) == 2**16
