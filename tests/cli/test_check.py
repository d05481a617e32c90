"""sparsemend-check: folders of any family, shards, masks that hold or not, refusals, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import random_model
from torch import Tensor

from sparsemend.blocks.walk import Calibration
from sparsemend.checkpoint.supports import read_checkpoint
from sparsemend.cli.check import main
from sparsemend.prune import prune
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.run.export import export, to_dense_
from sparsemend.sparse.count import sparsity_report
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.mask_file import save_masks
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform


def exported(folder: Path, *, family: str = "llama", pattern: str = "2:4") -> tuple[Path, float]:
    """An exported bf16 model at half sparsity with its masks, and its sparsity by torch's count."""
    model, parsed = random_model(family).to(torch.bfloat16), Pattern.parse(pattern)
    allocation = Uniform().allocate(model, Calibration(()), 0.5, parsed)
    prune(model, Calibration(()), Magnitude(group="row"), allocation, parsed)
    masks = folder / "masks.safetensors"
    save_masks({name: linear.keep for name, linear in sparse_linears(model)}, masks)
    sparsity = sparsity_report(model).of_prunable
    export(to_dense_(model), None, folder / "model", masks=masks, card="")
    return folder / "model", sparsity


def change(folder: Path, name: str, row: int, column: int | slice, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name][row, column] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and error stream of the command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_sparsity_and_pattern_of_an_export(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sparsity = exported(tmp_path, family=family)
    code, out, _ = ended(capsys, folder, "--json", "--pattern", "2:4")
    found = json.loads(out)
    assert code == 0
    assert found["holds"]
    assert found["sparsity"] == sparsity
    assert found["pattern"] == "2:4"
    assert {entry["pattern"] for entry in found["per_linear"].values()} == {"2:4"}
    assert {entry["non_zeros_off_mask"] for entry in found["per_linear"].values()} == {0}


def test_shards_say_what_one_file_says(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    whole = read_checkpoint(folder, None, None)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-{part}.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        index |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = read_checkpoint(folder, None, None)
    one = read_checkpoint(folder / "model-0.safetensors", None, None)  # with all masks beside it
    assert 0 < len(one.supports) < len(whole.supports)
    assert one.masks is not None
    assert sharded.supports == whole.supports
    assert list(sharded.supports) == list(whole.supports)


def test_one_weight_off_the_mask_ends_the_command_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(tmp_path, pattern="unstructured")
    name = "model.layers.1.mlp.up_proj.weight"
    zero = (load_file(folder / "model.safetensors")[name] == 0).nonzero()[0].tolist()
    change(folder, name, *zero, value=1e-30)
    code, out, err = ended(capsys, folder)
    assert code == 1
    assert f"{name}: 1 weights off the mask are not zero" in err
    assert "model.layers.1" in out  # the table is there all the same
    code, out, _ = ended(capsys, folder, "--json")
    assert code == 1
    assert not json.loads(out)["holds"]


def test_a_kept_weight_that_is_zero_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    kept = load_file(folder / "model.safetensors")[name].nonzero()[0].tolist()
    change(folder, name, *kept, value=0.0)
    code, out, _ = ended(capsys, folder, "--json")
    assert code == 0
    assert json.loads(out)["per_linear"][name.removesuffix(".weight")]["zeros_on_mask"] == 1


def test_a_pattern_that_does_not_hold_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(tmp_path)
    code, _, err = ended(capsys, folder, "--pattern", "1:4")
    assert code == 1
    line = " ".join(err.split())
    assert "2 of 4 consecutive inputs are not zero, more than pattern 1:4 allows" in line
    assert line.count("error:") == 1
    named = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert f"error: {', '.join(f'model.layers.0.{n}.weight' for n in named)} and 18 more" in line
    assert ended(capsys, folder, "--pattern", "5:10")[0] in (0, 1)  # an M that is no power of two
    assert ended(capsys, folder, "--pattern", "unstructured")[0] == 2


def test_equal_blocks_share_a_row_and_an_odd_one_has_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(tmp_path)
    (tmp_path / "model" / "masks.safetensors").unlink()
    rows = [line for line in ended(capsys, folder)[1].splitlines() if "model.layers" in line]
    assert len(rows) == 1
    assert "model.layers.0 ... 2, each" in rows[0]
    change(folder, "model.layers.1.self_attn.q_proj.weight", 0, slice(0, 4), value=1.0)
    rows = [line for line in ended(capsys, folder)[1].splitlines() if "model.layers" in line]
    assert [row.split()[1] for row in rows] == [f"model.layers.{block}" for block in range(3)]


def test_the_zeros_of_a_model_that_nobody_pruned_are_not_called_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model("llama").save_pretrained(tmp_path)
    code, out, _ = ended(capsys, tmp_path)
    assert code == 0
    assert "pruned" not in out
    assert "dense" in out


def test_rows_are_blocks_or_linears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sparsity = exported(tmp_path)
    blocks = ended(capsys, folder)[1]
    linears = ended(capsys, folder, "--linears")[1]
    assert "q_proj" not in blocks
    assert "model.layers.2.self_attn.q_proj" in linears
    assert f"{sparsity:.6f}" in blocks


def test_masks_of_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported(tmp_path / "one")
    other, _ = exported(tmp_path / "other", family="opt")
    code, _, err = ended(capsys, folder, "--masks", other / "masks.safetensors")
    assert code == 1
    assert "is not of these weights" in err


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def run_folder(folder: Path) -> Path:
    (empty(folder) / "result.json").write_text("{}")
    return folder


def pickled(folder: Path) -> Path:
    (empty(folder) / "pytorch_model.bin").write_text("")
    return folder


def no_blocks(folder: Path) -> Path:
    save_file({"head.weight": Tensor([[1.0]])}, empty(folder) / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "does not exist"),
        (empty, "has no weights"),
        (pickled, "pickled weights only"),
        (run_folder, "is a run folder, not a checkpoint; it was not exported"),
        (no_blocks, "no linear inside decoder blocks"),
    ],
)
def test_folders_without_weights_are_refused_with_a_remedy(
    make: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ended(capsys, make(tmp_path / "folder"))  # type: ignore[operator]
    assert code == 1
    assert message in err


def test_the_command_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    script = (
        f"import sys; from sparsemend.cli.check import main; main([{str(folder)!r}]); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'hydra', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
