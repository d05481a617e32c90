"""300 damaged checkpoints: each is read rightly, or refused in one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from safetensors import deserialize
from support.damaged_files import CONFIG, INDEX, MASKS, SHARDS, sound_folder, write_damaged

from sparsemend.checkpoint.headers import read_header, weight_files
from sparsemend.checkpoint.linears import linear_shapes
from sparsemend.checkpoint.masks import read_masks
from sparsemend.checkpoint.model import find_model
from sparsemend.checkpoint.supports import read_checkpoint
from sparsemend.preflight.check import check_linears
from sparsemend.preflight.checkpoint import check_checkpoint
from sparsemend.sparse.pattern import Pattern

FILES = (*SHARDS, MASKS)


def test_the_sound_checkpoint_is_read(tmp_path: Path) -> None:
    for name, content in sound_folder().files().items():
        (tmp_path / name).write_bytes(content)
    assert refusals(tmp_path) == []


def test_an_index_that_places_a_tensor_elsewhere_is_refused_by_every_reader(
    tmp_path: Path,
) -> None:
    folder = sound_folder()
    folder.texts[INDEX]["weight_map"]["layers.1.up.weight"] = SHARDS[0]
    for name, content in folder.files().items():
        (tmp_path / name).write_bytes(content)
    for reader in (prepare, check_supports):
        with pytest.raises(ValueError, match=rf"{SHARDS[0]} lacks layers\.1\.up\.weight"):
            reader(tmp_path)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(60, 300, 60))]
)
def test_damaged_files_are_read_rightly_or_refused_by_name(first: int, tmp_path: Path) -> None:
    refused = 0
    for seed in range(first, first + 60):
        damage = write_damaged(tmp_path / str(seed), seed)
        try:
            refused += bool(refusals(tmp_path / str(seed)))
        except Exception as error:
            raise AssertionError(f"seed {seed}, {damage}: {error!r}") from error
    assert 30 < refused < 60  # else the damages are too soft, or all are refused for one reason


def refusals(folder: Path) -> list[str]:
    """The messages with which readers refuse a folder; what is not refused is checked."""
    readers: list[Callable[[], object]] = [
        lambda: prepare(folder),
        lambda: weight_files(folder),
        lambda: check_supports(folder),
        lambda: read_masks(folder / MASKS),
        *(lambda name=name: check_header(folder / name) for name in FILES),
    ]
    return [message for reader in readers if (message := refusal(reader, folder))]


def refusal(reader: Callable[[], object], folder: Path) -> str:
    """The one printable line with which a reader refuses a folder, empty where it does not."""
    try:
        reader()
    except UnicodeError as error:
        raise AssertionError(repr(error)) from error
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        return ""
    assert message.isprintable()
    assert str(folder) in message
    return message


def prepare(folder: Path) -> None:
    """What the early checks read of a model folder."""
    section = DictConfig({"name": "local", "path": str(folder)})
    model = find_model(section)
    assert model.config is not None
    assert model.blocks is not None
    check_checkpoint(section, model)
    linear_shapes(model.blocks, model.config.values)
    check_linears(model.path, model.blocks, model.config.values)


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> dtype, shape and bytes, by the library that owns the format."""
    tensors = deserialize(path.read_bytes())
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in tensors}


def check_header(path: Path) -> None:
    """Every tensor that a header describes is where the library finds it."""
    content = path.read_bytes()
    headers = read_header(path)
    expected = stored(path)
    assert headers.keys() == expected.keys()
    for name, header in headers.items():
        dtype, shape, data = expected[name]
        assert (header.dtype, header.shape) == (dtype, shape)
        assert content[header.begin : header.begin + len(data)] == data


def check_supports(folder: Path) -> None:
    """Zeros are those of the tensors of that name, by the library."""
    checked = read_checkpoint(folder, None, Pattern(2, 4))
    tensors = {n: t for path in weight_files(folder) for n, t in stored(path).items()}
    for name, support in checked.supports.items():
        dtype, shape, data = tensors[checked.tensors[name]]
        values = np.frombuffer(data, {"F16": np.float16}.get(dtype, np.float16))
        assert dtype != "F16" or support.zeros == values.size - np.count_nonzero(values)
        assert (support.shape, support.weights) == (shape, prod(shape))


def test_the_index_and_the_config_are_damaged_too(tmp_path: Path) -> None:
    damaged = set()
    sound = sound_folder().files()
    for seed in range(60):
        write_damaged(tmp_path / str(seed), seed)
        for name in sound:
            path = tmp_path / str(seed) / name
            if not path.is_file() or path.read_bytes() != sound[name]:
                damaged.add(name)
    assert damaged == {CONFIG, INDEX, *FILES}
