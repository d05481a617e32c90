"""Hidden states have the same bits wherever they lie, and outlive a killed walk in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import random_model
from torch import Tensor

from sparsemend.blocks import device_memory
from sparsemend.blocks.file_states import FileStates
from sparsemend.blocks.hidden_states import HeldStates
from sparsemend.blocks.residency import InMemory, attach_residency
from sparsemend.blocks.states import StatesPlace
from sparsemend.blocks.walk import Calibration

CPU = torch.device("cpu")


def outputs(tokens: Tensor, place: StatesPlace) -> list[Tensor]:
    model = random_model("gemma2")
    for visit in Calibration((tokens,), states=place).walk(model):
        last = [state.clone() for state in visit.inputs]
    return last


def test_a_walk_sees_the_same_states_in_memory_and_in_files(tokens: Tensor, tmp_path: Path) -> None:
    held = outputs(tokens, StatesPlace())
    filed = outputs(tokens, StatesPlace("file", tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(held, filed, strict=True))
    assert list(tmp_path.iterdir()) == []  # they go with the walk


def test_states_in_files_keep_dtypes_and_shapes_and_turn_as_a_whole(tmp_path: Path) -> None:
    states = FileStates(tmp_path / "walk")
    first = [torch.randn(1, 3, 5).bfloat16(), torch.randn(2, 4)]
    for state in first:
        states.append(state)
    states.put(0, torch.zeros(1, 3, 5))  # fp32 from now on
    assert torch.equal(states[0], first[0])
    other = states.copy()
    states.put(1, first[1] + 1)
    states.turn("one")
    assert states[0].dtype == torch.float32
    assert [tuple(state.shape) for state in states] == [(1, 3, 5), (2, 4)]
    assert torch.equal(states[-1], first[1] + 1)
    assert torch.equal(other[1], first[1])


def test_states_are_taken_up_after_the_block_that_their_stamp_names(tmp_path: Path) -> None:
    states = FileStates(tmp_path)
    states.append(torch.zeros(1, 2))
    for number, stamp in enumerate(("one", "two"), start=1):
        states.put(0, torch.full((1, 2), float(number)))
        states.turn(stamp)
    again = FileStates.after(tmp_path, "one")
    assert again is not None
    assert torch.equal(again[0], torch.ones(1, 2))
    again.put(0, torch.full((1, 2), 5.0))  # killed here: what entered is still whole
    again = FileStates.after(tmp_path, "one")
    assert again is not None
    assert torch.equal(again[0], torch.ones(1, 2))
    assert FileStates.after(tmp_path, "two") is None
    assert StatesPlace("file", None).after("one") is None


def test_outputs_lie_where_the_inputs_do_and_are_read_one_by_one(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Calibration((tokens[:4],), together=2, states=StatesPlace("file", tmp_path))
    visit = next(calibration.walk(random_model("llama")))
    outputs = visit.outputs()
    assert isinstance(outputs, FileStates)
    assert visit.sizes == [2, 2]
    read: list[int] = []
    whole = FileStates.read
    monkeypatch.setattr(FileStates, "read", lambda s, n: read.append(n) or whole(s, n))
    last = outputs[1:]
    assert (len(last), read) == (1, [])
    assert torch.equal(last[0], visit.output(1))
    assert torch.equal(outputs.row(1, 1), last[0][1])
    assert torch.equal(outputs.tokens(1, 3, 99), last[0][:, 3:])
    assert outputs.shape(0) == last[-1].shape


def test_states_in_a_file_that_was_cut_short_are_not_made_up(tmp_path: Path) -> None:
    states = FileStates(tmp_path)
    states.append(torch.ones(1, 4))
    (tmp_path / "states-0").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"states-0 was cut short"):
        states[0]


class Half(InMemory):
    """Blocks of which the first was changed by an attempt that was killed."""

    finished = 0

    def take_up(self, carried: object = None) -> int:
        return self.finished

    def stamp(self, index: int) -> str:
        return f"block {index}"


def test_no_file_of_states_outlives_a_walk_that_changes_blocks(
    tokens: Tensor, tmp_path: Path
) -> None:
    place = StatesPlace("file", tmp_path)
    walk = Calibration((tokens,), states=place).walk(random_model("llama"), changes=True)
    assert [sorted(p.name for p in tmp_path.iterdir()) for _ in walk] == [["changes"]] * 3
    assert not any(tmp_path.iterdir())


def test_a_killed_walk_goes_on_from_its_files_without_walking_through_the_blocks_before(
    tokens: Tensor, tmp_path: Path
) -> None:
    model = random_model("llama")
    residency = Half(model)
    attach_residency(model, residency)
    calibration = Calibration((tokens,), states=StatesPlace("file", tmp_path))
    whole = [
        [state.clone() for state in visit.inputs] for visit in calibration.walk(model, changes=True)
    ]
    for number, _ in enumerate(calibration.walk(model, changes=True)):
        if number == 2:
            break
    residency.finished = 2
    called: list[int] = []
    for index, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_hook(lambda *_, index=index: called.append(index))
    seen = [
        (visit.index, [state.clone() for state in visit.inputs])
        for visit in calibration.walk(model, changes=True)
    ]
    assert [index for index, _ in seen] == [2]
    assert all(torch.equal(a, b) for a, b in zip(whole[2], seen[0][1], strict=True))
    assert 1 not in called  # 0: to see what a block returns


@pytest.mark.parametrize(
    ("free", "folder", "kind"),
    [(400, True, HeldStates), (399, True, FileStates), (399, False, HeldStates)],
)
def test_auto_goes_to_files_where_states_take_above_a_quarter_of_the_memory(
    free: int, folder: bool, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "available_bytes", lambda: free)
    place = StatesPlace("auto", tmp_path if folder else None)
    assert isinstance(place.empty(CPU, 100, resumable=False), kind)


@pytest.mark.parametrize(
    ("on_card", "on_host", "home"),
    [(400, 0, "cuda"), (399, 400, "cpu"), (None, 0, "cuda"), (399, 399, None)],
)
def test_auto_goes_from_a_full_card_to_the_host_and_from_there_to_files(
    on_card: int | None,
    on_host: int,
    home: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_memory, "available_bytes", lambda: on_host)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: on_card)
    states = StatesPlace("auto", tmp_path).empty(torch.device("cuda"), 100, resumable=False)
    if home is None:
        assert isinstance(states, FileStates)
    else:
        assert isinstance(states, HeldStates)
        assert states.device.type == home
