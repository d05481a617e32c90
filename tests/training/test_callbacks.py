"""What a fit keeps of its best weights, and says of itself where no terminal shows a bar."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

import pytest
import torch
from support import contracts

from sparsemend import terminal
from sparsemend.terminal import StageLines
from sparsemend.training.callbacks import BestCheckpoint


def after_a_validation(folder: Path) -> dict[str, object]:
    """What last.ckpt knows of the best weights, which are in `folder`."""
    best = BestCheckpoint(folder, needed=True)
    best.best_model_path = best.kth_best_model_path = str(best.folder / "best.ckpt")
    best.best_model_score = best.kth_value = torch.tensor(2.5)
    best.best_k_models = {best.best_model_path: torch.tensor(2.5)}
    folder.mkdir()
    torch.save({"state_dict": {"weight": torch.ones(3)}}, folder / "best.ckpt")
    return best.state_dict()


def test_a_folder_that_has_moved_still_has_its_best_weights(tmp_path: Path) -> None:
    state = after_a_validation(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    best = BestCheckpoint(tmp_path / "there", needed=True)
    best.load_state_dict(state)
    assert best.best_model_score == 2.5
    assert best.best_k_models == {best.kth_best_model_path: 2.5}
    assert best.best_model_path == str(tmp_path / "there" / "best.ckpt")
    weights = best.read()
    assert weights is not None
    assert torch.equal(weights["weight"], torch.ones(3))


@pytest.mark.parametrize("lost", ["cut", "gone"])
def test_a_fit_does_not_go_on_without_the_best_weights_that_it_would_end_with(
    lost: str, tmp_path: Path
) -> None:
    state, path = after_a_validation(tmp_path / "fit"), tmp_path / "fit" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:100]) if lost == "cut" else path.unlink()
    BestCheckpoint(tmp_path / "fit", needed=False).load_state_dict(state)
    said = rf"^{path}, the best weights so far, cannot be read \(.*\); remove {path.parent}, and"
    with pytest.raises(ValueError, match=said):
        BestCheckpoint(tmp_path / "fit", needed=True).load_state_dict(state)


def test_a_fit_without_a_validation_has_no_best_weights(tmp_path: Path) -> None:
    assert BestCheckpoint(tmp_path, needed=True).read() is None


def test_a_fit_says_its_step_its_pace_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method, bench = contracts.method_of("masked_lora"), contracts.bench_for(tmp_path)
    model = contracts.pruned_model()  # walks, which say how far they are too
    clock = count(0, 40)  # a look at the clock costs 40 seconds
    monkeypatch.setattr(terminal, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(StageLines, "latest", None)
    caplog.set_level(logging.INFO, "sparsemend.terminal")
    method.repair(model, bench)
    pace = round(2 * bench.train.tokens.shape[1] / 40)  # a step reads 2 windows
    said = [r.getMessage() for r in caplog.records if r.name == terminal.__name__]
    assert said == [
        f"training step 1/3  {pace} tokens/s  80 s left",
        f"training step 2/3  {pace} tokens/s  40 s left",
        f"training step 3/3  {pace} tokens/s  0 s left",
        "validation batch 1/2  40 s left",
        "validation batch 2/2  0 s left",
    ]
