"""A packed folder that is not whole, or not of its config, is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.families import random_model
from support.layouts import prune_two_of_four_

from sparsemend.checkpoint.headers import weight_files
from sparsemend.checkpoint.packed import read_packed
from sparsemend.generation.folder import find_place
from sparsemend.pretrained.packed import load_packed_model, packed_linears
from sparsemend.run.export import export

FILE = "packed-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder."""
    model = random_model("llama")
    prune_two_of_four_(model)
    folder = tmp_path_factory.mktemp("packed") / "model"
    export(model, None, folder, masks=folder / "none", card=None, values="float32")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def cut(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:-1000])


def rename(folder: Path) -> None:
    (folder / FILE).rename(folder / "packed-00001-of-00002.safetensors")


def mix(folder: Path) -> None:
    shutil.copyfile(folder / FILE, folder / "packed-00001-of-00002.safetensors")


def rewrite(
    folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]
) -> None:
    with safe_open(folder / FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, folder / FILE, metadata)


def forget_values(folder: Path) -> None:
    rewrite(folder, lambda t, m: [t.pop(n) for n in list(t) if n.endswith("up_proj.values")])


def forget_norm(folder: Path) -> None:
    rewrite(folder, lambda t, m: t.pop("model.norm.weight"))


def forget_linear(folder: Path) -> None:
    def forget(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        name = "model.layers.1.mlp.up_proj"
        metadata["shapes"] = json.dumps(
            {n: shape for n, shape in json.loads(metadata["shapes"]).items() if n != name}
        )
        del tensors[f"{name}.mask"], tensors[f"{name}.values"]

    rewrite(folder, forget)


def add_bias(folder: Path) -> None:
    rewrite(folder, lambda t, m: t.update({"model.layers.1.mlp.up_proj.bias": torch.ones(48)}))


def bias_of_another_length(folder: Path) -> None:
    rewrite(folder, lambda t, m: t.update({"model.layers.1.mlp.up_proj.bias": torch.ones(47)}))


def half(folder: Path) -> None:
    change_config(folder, dtype="float16")


def unknown_activation(folder: Path) -> None:
    change_config(folder, hidden_act="nonsense")


def flip(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.mask"
    rewrite(folder, lambda t, m: t[name].flatten().__setitem__(0, 2**31 - 1))


def format_of_another(folder: Path) -> None:
    rewrite(folder, lambda t, m: m.update(format="pt"))


def a_single_file(folder: Path) -> None:
    rewrite(folder, lambda t, m: m.pop("instead_of"))


def not_json(folder: Path) -> None:
    rewrite(folder, lambda t, m: m.update(shapes="{"))


def odd_shape(folder: Path) -> None:
    rewrite(folder, lambda t, m: m.update(shapes='{"model.layers.0.mlp.up_proj": [48]}'))


def change_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def other_width(folder: Path) -> None:
    change_config(folder, intermediate_size=64)


def fewer_blocks(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)


def more_blocks(folder: Path) -> None:
    change_config(folder, num_hidden_layers=4)


def with_biases(folder: Path) -> None:
    change_config(folder, mlp_bias=True)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut, "is cut short"),
        (rename, r"lacks 1 of its 2 files of packed weights, first packed-00002-of-00002"),
        (mix, "packed weights of several exports, of 1 and of 2 files"),
        (forget_values, r"up_proj has no mask or no values"),
        (forget_norm, r"model\.norm\.weight"),
        (forget_linear, r"holds no values of model\.layers\.1\.mlp\.up_proj\.weight"),
        (add_bias, r"up_proj with a bias, and its config\.json says otherwise"),
        (bias_of_another_length, r"up_proj has a bias of torch\.float32 \(47,\) for 48 rows"),
        (half, r"gives the dtype torch\.float16, and packed weights are multiplied by float32"),
        (unknown_activation, "cannot be loaded: 'nonsense'"),
        (flip, r"up_proj: the mask has \d+ weights, and \d+ values"),
        (format_of_another, "is not a sparsemend-packed-1 file but pt"),
        (a_single_file, "has no instead_of in its metadata"),
        (not_json, "has metadata that are no JSON, shapes"),
        (odd_shape, r"the shape \[48\], which is no matrix"),
        (other_width, "does not fit its config"),
        (fewer_blocks, "does not fit"),
        (more_blocks, "does not fit"),
        (with_biases, "does not fit"),
        (broken_config, "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_one_line(
    folder: Path, damage: Callable[[Path], None], line: str
) -> None:
    damage(folder)
    with pytest.raises((ValueError, OSError), match=line) as refusal:
        load_packed_model(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_linears_of_other_names_are_refused_with_the_writers_version(folder: Path) -> None:
    def call_otherwise(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.0.mlp.up_proj.")]:
            tensors[name.replace("up_proj", "upward")] = tensors.pop(name)
        metadata["shapes"] = metadata["shapes"].replace(
            "layers.0.mlp.up_proj", "layers.0.mlp.upward"
        )
        metadata["transformers"] = "4.1"

    rewrite(folder, call_otherwise)
    with pytest.raises(ValueError, match=r"upward.*no such linear; it was written with.* 4\.1"):
        load_packed_model(folder)


def test_the_folder_of_a_run_is_that_of_its_model(folder: Path) -> None:
    (folder.parent / "result.json").write_text("{}")
    assert packed_linears(load_packed_model(folder.parent))
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="is a run folder without a model/; repeat its run"):
        load_packed_model(folder.parent)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no packed weights"):
        read_packed(tmp_path)
    with pytest.raises(ValueError, match=r"dtype torch\.float16 is not one of"):
        load_packed_model(tmp_path, dtype=torch.float16)


def test_who_reads_dense_weights_is_told_that_they_are_packed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds packed weights.*export_form=dense"):
        weight_files(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_ordinary_weights_beside_packed_ones_are_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    for read in (weight_files, lambda place: find_place(str(place))):
        with pytest.raises(ValueError, match=f"holds both {name} and packed weights.*move those"):
            read(folder)


def test_what_is_mapped_stays_when_the_folder_is_replaced(folder: Path) -> None:
    model = load_packed_model(folder)
    before = model(torch.arange(3, 9).unsqueeze(0)).logits.clone()
    shutil.rmtree(folder)
    assert torch.equal(model(torch.arange(3, 9).unsqueeze(0)).logits, before)


def test_its_facts_are_read_without_a_weight(whole: Path) -> None:
    described = read_packed(whole)
    assert described.values == "F32"
    weights = 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert described.weights == weights
    # half of the weights, 64 zeros a linear, and a mask of whole tiles, which 48 columns fill to 64
    masks = weights / 8 + 3 * 32 * 16 / 8
    assert described.packed_bytes == weights * 4 / 2 + 21 * 64 * 4 + masks
