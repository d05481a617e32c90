import subprocess
import sys


def test_the_benchmark_command_compares_every_job_with_the_floor() -> None:
    sizes = ["--hidden", "64", "--intermediate", "96", "--blocks", "2", "--samples", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsemend.benchmark", "--rounds", "1", "--seqlen", "16", *sizes],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for job in ("two passes", "wanda", "sparsegpt", "dsnot"):
        assert job in done.stdout
