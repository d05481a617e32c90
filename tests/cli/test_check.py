"""sparsemend-check: folders of any family, shards, masks that hold or not, refusals, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import layouts
from support.families import COMMON, random_model
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.blocks.walk import Calibration
from sparsemend.checkpoint.supports import read_checkpoint
from sparsemend.cli.check import main
from sparsemend.layout.unfold import unfold_
from sparsemend.prune import prune
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.run.export import export, save_supports, to_dense_
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4:2", "pattern '4:2' is not one of: unstructured, N:M with 0 < N < M"),
        ("foo", "pattern 'foo' is not one of: unstructured, N:M with 0 < N < M"),
        ("unstructured", "unstructured forbids nothing; give N:M, for example 2:4"),
        ("mixed:8", "mixed:8 forbids nothing; give N:M, for example 2:4"),
    ],
)
def test_a_text_that_is_no_pattern_is_refused_with_the_reason(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ended(capsys, tmp_path, "--pattern", text)
    assert code == 2
    assert f"error: argument --pattern: {reason}" in " ".join(err.split())


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


MOE = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2}
LAYOUTS: dict[str, tuple[dict[str, object], str, int]] = {  # settings, a tensor, its input axis
    "mixtral": (MOE, "model.layers.1.block_sparse_moe.experts.1.w2", -1),
    "qwen3_moe": (
        {**MOE, "num_experts": 2, "moe_intermediate_size": 24, "head_dim": 8},
        "model.layers.1.mlp.experts.1.gate_proj",
        -1,
    ),
    "deepseek_v3": (
        {
            "n_routed_experts": 2,
            "num_experts_per_tok": 1,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        "model.layers.1.mlp.experts.1.up_proj",
        -1,
    ),
    "gpt_oss": ({**MOE, "head_dim": 8}, "model.layers.1.mlp.experts.down_proj", -2),
    "gpt2": ({"n_embd": 32, "n_layer": 3, "n_head": 4}, "transformer.h.1.mlp.c_proj", -2),
}


def saved(family: str, folder: Path) -> tuple[Path, dict[str, tuple[Tensor, int]]]:
    """A saved model that is 2:4 in its linears, and its weights with their axis of inputs.

    The pattern is written into the saved tensors here, not by the package.
    """
    settings, _, axis = LAYOUTS[family]
    path = folder / family
    config = transformers.AutoConfig.for_model(family, **{**COMMON, **settings})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tensors, weights = load_file(path / "model.safetensors"), {}
    for name, tensor in tensors.items():
        inside = ".layers." in name or ".h." in name
        other = name.endswith((".gate.weight", "router.weight", "bias")) or tensor.ndim < 2
        if inside and not other:
            inputs = axis if family == "gpt2" or tensor.ndim == 3 else -1
            tensors[name] = two_of_four(tensor + 0.5, inputs)
            weights[name.removesuffix(".weight")] = (tensors[name], inputs)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path, weights


def two_of_four(tensor: Tensor, inputs: int) -> Tensor:
    moved = tensor.movedim(inputs, -1)
    order = torch.rand(*moved.shape[:-1], moved.shape[-1] // 4, 4).argsort(dim=-1)
    return (moved * (order < 2).flatten(-2)).movedim(-1, inputs).contiguous()


def write_saved_masks(path: Path, weights: dict[str, tuple[Tensor, int]], **lists: object) -> None:
    """Masks of saved tensors as the format says, by numpy."""
    packed = {
        name: torch.from_numpy(
            np.packbits((w != 0).movedim(axis, -1).contiguous().numpy(), axis=-1, bitorder="little")
        )
        for name, (w, axis) in weights.items()
    }
    metadata = {
        "format": "sparsemend-masks-1",
        "shapes": json.dumps({name: list(w.shape) for name, (w, _) in weights.items()}),
        "input_axis": json.dumps({name: axis % w.ndim for name, (w, axis) in weights.items()}),
        **{key: json.dumps(value) for key, value in lists.items()},
    }
    save_file(packed, path / "masks.safetensors", metadata=metadata)


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_layout_is_read_along_its_inputs_with_and_without_masks(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weights = saved(family, tmp_path)
    _, name, axis = LAYOUTS[family]
    for masked in (False, True):
        if masked:
            write_saved_masks(path, weights)
        code, out, err = ended(capsys, path, "--json", "--pattern", "2:4")
        read = json.loads(out)
        assert (code, "error" in err) == (0, False)
        assert set(read["per_linear"]) == set(weights)
        assert (read["pattern"], read["sparsity"]) == ("2:4", 0.5)
        assert read["per_linear"][name]["input_axis"] == axis
        assert read["per_linear"][name]["non_zeros_off_mask"] == (0 if masked else None)
    place = torch.nonzero(weights[name][0] == 0)[5].tolist()
    tensors = load_file(path / "model.safetensors")
    full = name if name in tensors else f"{name}.weight"
    tensors[full][tuple(place)] = 1e-30
    save_file(tensors, path / "model.safetensors")
    code, _, err = ended(capsys, path, "--pattern", "2:4")
    assert code == 1
    assert f"{full}: 1 weights off the mask are not zero" in err
    assert f"{full}: 3 of 4 consecutive inputs are not zero" in " ".join(err.split())


def test_linears_that_stay_dense_are_shown_apart_and_fail_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weights = saved("mixtral", tmp_path)
    dense = "model.layers.1.block_sparse_moe.experts.1.w2"
    tensors = load_file(path / "model.safetensors")
    tensors[f"{dense}.weight"] = torch.ones_like(tensors[f"{dense}.weight"])
    save_file(tensors, path / "model.safetensors")
    rest = {name: weight for name, weight in weights.items() if name != dense}
    write_saved_masks(path, rest, stays_dense=[dense])
    code, out, _ = ended(capsys, path, "--pattern", "2:4")
    assert code == 0
    size = weights[dense][0].numel()
    assert f"1 linears stay dense, as the masks file says: {dense}; {size:,} weights" in out
    assert "1:4" not in out
    write_saved_masks(path, rest)  # no list: then every linear has a mask
    code, _, err = ended(capsys, path, "--pattern", "2:4")
    assert code == 1
    assert f"{dense} has no mask there and (32, 48) in the checkpoint" in " ".join(err.split())


def test_an_expert_of_a_stack_that_its_mask_keeps_whole_fails_no_pattern(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weights = saved("gpt_oss", tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    tensors = load_file(path / "model.safetensors")
    tensors[name][1] = 1.0  # no token reached the second expert
    save_file(tensors, path / "model.safetensors")
    write_saved_masks(path, {**weights, name: (tensors[name], -2)})
    code, out, _ = ended(capsys, path, "--pattern", "2:4")
    assert code == 0
    assert f"{48 * 32:,} weights are kept whole by their masks, in {name}" in out


def test_what_the_lists_have_in_no_block_is_no_linear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weights = saved("mixtral", tmp_path)
    rest = {name: weight for name, weight in weights.items() if "o_proj" not in name}
    write_saved_masks(path, rest, stays_dense=[])
    code, out, _ = ended(capsys, path)
    assert code == 0
    assert "left out, they have no mask" in out
    assert "model.layers.*.self_attn.o_proj" in out


def test_a_quantised_checkpoint_is_named_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qweight = {"layers.0.q_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(qweight, tmp_path / "model.safetensors")
    code, _, err = ended(capsys, tmp_path)
    assert code == 1
    assert "stores weights as I32, first layers.0.q_proj.qweight: it is quantised" in err


@pytest.mark.parametrize("family", slow_but_for(layouts.LAYOUTS, ["mixtral", "gpt_oss", "gpt2"]))
def test_an_export_of_any_layout_is_read_as_it_was_pruned(family: str, tmp_path: Path) -> None:
    model = layouts.layout_model(family)
    unfold_(model)
    layouts.prune_two_of_four_(model)
    pruned = sum(linear.weight.numel() for _, linear in sparse_linears(model))
    masks = tmp_path / "masks.safetensors"
    save_supports(model, masks)
    export(to_dense_(model), None, tmp_path / "model", masks=masks, card=None)
    asked = Pattern(2, 4)
    with_masks = read_checkpoint(tmp_path / "model", None, asked)
    assert with_masks.failures(asked) == []
    assert (with_masks.weights, with_masks.pattern) == (pruned, asked)
    (tmp_path / "model" / "masks.safetensors").unlink()
    without = read_checkpoint(tmp_path / "model", None, asked)
    read, masked = without.prunable.linears, with_masks.prunable.linears
    assert read == {name: masked[name] for name in read}  # the axes of inputs too
    assert set(without.excluded) >= masked.keys() - read.keys()  # routers
    assert without.pattern == asked
