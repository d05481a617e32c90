import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sparsemend import cost
from sparsemend.cost import Stages


def test_seconds_add_up_over_repeated_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 20.0, 20.5, 30.0, 32.0])
    monkeypatch.setattr(cost, "perf_counter", lambda: next(clock))
    stages = Stages(torch.device("cpu"))
    for part in ("dense", "pruned", None):
        with stages.measure("evaluate", part):
            pass
    spent = stages.costs["evaluate"]
    assert spent.seconds == 3.5
    assert {name: part.seconds for name, part in spent.parts.items()} == {"dense": 1, "pruned": 0.5}


def test_a_stage_that_fails_is_measured_all_the_same() -> None:
    stages = Stages(torch.device("cpu"))
    try:
        with stages.measure("load"):
            raise ValueError
    except ValueError:
        pass
    assert stages.costs["load"].peak_bytes > 0


def test_the_peak_belongs_to_the_stage_that_made_it() -> None:
    stages = Stages(torch.device("cpu"))
    if stages.peak_scope != "stage":
        return  # this system cannot reset the peak, and the scope says so
    with stages.measure("large"):
        torch.ones(64 * 2**20)  # 256 MiB, freed before the next stage
    with stages.measure("small"):
        torch.ones(1)
    assert stages.costs["large"].peak_bytes - stages.costs["small"].peak_bytes > 200 * 2**20


@pytest.mark.parametrize(
    ("stage", "lower"),
    [("evaluate", "hardware.evaluation_batch=1"), ("repair", "hardware.micro_batch=1")],
)
def test_a_lack_of_memory_is_one_line_with_stage_device_peak_and_what_lowers_it(
    stage: str, lower: str
) -> None:
    stages = Stages(torch.device("cpu"))
    with pytest.raises(MemoryError) as caught, stages.measure(stage):
        torch.empty(2**62, dtype=torch.uint8)
    assert re.match(f"{stage}: out of memory on cpu after [0-9,]+ MiB ", str(caught.value))
    assert lower in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB, max allowed: 9 GiB)"),
    ],
    ids=["CUDA", "cuBLAS", "driver", "MPS"],
)
def test_a_gpu_that_lacks_memory_is_answered_alike(error: Exception) -> None:
    stages = Stages(torch.device("cpu"))
    with pytest.raises(MemoryError, match=r"hardware\.offload=true"), stages.measure("prune"):
        raise error


def test_an_error_of_cuda_keeps_its_traceback() -> None:
    stages = Stages(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="CUDA error"), stages.measure("prune"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_operator_that_cannot_be_deterministic_is_one_line_with_the_switch() -> None:
    stages = Stages(torch.device("cpu"))
    with (
        pytest.raises(ValueError, match=r"^repair: .*histc.*set hardware\.deterministic=false"),
        stages.measure("repair"),
    ):
        raise RuntimeError("histc_cuda does not have a deterministic implementation, but you set")


def test_an_operator_that_apples_gpu_lacks_is_one_line_with_the_remedy() -> None:
    stages = Stages(torch.device("cpu"))
    said = (
        r"^prune: The operator 'aten::cholesky_inverse' is not currently implemented for the MPS "
        r"device; set PYTORCH_ENABLE_MPS_FALLBACK=1 [^\n]*$"
    )
    with pytest.raises(ValueError, match=said), stages.measure("prune"):
        raise NotImplementedError(
            "The operator 'aten::cholesky_inverse' is not currently implemented for the MPS "
            "device. If you want this op to be considered for addition please comment on\nit."
        )


def save_by_torch(path: Path) -> None:
    torch.save({"weight": torch.zeros(2**16)}, path)


def save_by_safetensors(path: Path) -> None:
    # save_file makes a file of its own where a link to /dev/full lies, so these are its words
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def save_by_python(path: Path) -> None:
    path.write_bytes(b"0")


@pytest.mark.parametrize("save", [save_by_torch, save_by_safetensors, save_by_python])
def test_a_full_disk_is_one_line(save: Callable[[Path], None], tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    stages = Stages(torch.device("cpu"))
    with (
        pytest.raises(OSError, match=r"^export: the disk is full .* resume=auto$"),
        stages.measure("export"),
    ):
        save(full)
