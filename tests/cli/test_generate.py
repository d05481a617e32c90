"""sparsemend-generate: text on standard output, rates on standard error, refusals in one line."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.layouts import prune_two_of_four_
from support.process_state import process_state
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sparsemend.cli import generate as command
from sparsemend.generation import speak
from sparsemend.model import train_tokenizer
from sparsemend.run.export import export

WORDS = ["the import statement binds a name", "a module is imported once", "a function is called"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder with a tokenizer, 48 positions, no chat template."""
    settings: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300}
    config = AutoConfig.for_model("llama", max_position_embeddings=48, eos_token_id=0, **settings)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).eval()
    prune_two_of_four_(made)
    folder = tmp_path_factory.mktemp("generate") / "model"
    tokenizer = train_tokenizer(WORDS * 20, 300)
    export(made, tokenizer, folder, masks=folder / "none", card=None, values="float32")
    return folder


class Input(io.StringIO):
    """A standard input that is a terminal, or none."""

    def __init__(self, text: str, *, terminal: bool = False) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def run(
    capsys: pytest.CaptureFixture[str], *arguments: object, stdin: Input | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    with process_state(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin or Input("", terminal=True))
        try:
            command.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_text_is_that_of_transformers_and_the_rates_are_beside_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = (model, "--prompt", "a module", "--greedy", "--max-new-tokens", 6)
    code, out, err = run(capsys, *greedy)
    assert code == 0, err
    from sparsemend.pretrained.packed import load_packed_model

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer("a module", return_tensors="pt").input_ids
    made = load_packed_model(model).generate(ids, max_new_tokens=6, do_sample=False)
    assert out == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) + "\n"
    count = ids.shape[1]
    assert re.search(rf"^prefill {count} tokens in [\d.]+ s, [\d,.]+ tokens/s  decode ", err, re.M)
    assert "(float32, packed F32, " in err
    assert run(capsys, model, *greedy[3:], stdin=Input("a module\n"))[1] == out


def test_what_is_drawn_follows_the_seed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(seed: int) -> str:
        drawn = ("--temperature", 5, "--top-k", 200, "--top-p", 0.99, "--max-new-tokens", 12)
        return run(capsys, model, "--prompt", "a", *drawn, "--seed", seed)[1]

    first = text(1)
    assert text(1) == first
    assert text(2) != first


def test_the_positions_of_the_model_end_a_text_with_a_note(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, model, "--prompt", "a b a b", "--greedy")
    assert code == 0
    assert re.search(r"^\d\d new tokens at most: the model has no more positions$", err, re.M)
    code, out, err = run(capsys, model, "--prompt", "a", "--prompt", "a b " * 60)
    assert (code, out) == (1, "")  # before the first is answered
    assert len(err.splitlines()) == 1
    assert re.search(r"prompt has \d+ tokens, and the model max_position_embeddings=48", err)


def test_an_empty_prompt_begins_a_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, model, "--prompt", "", "--max-new-tokens", 2)
    assert code == 0
    assert "prefill 1 tokens" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--chat", "--prompt", "a"], "has no chat template; leave out --chat"),
        (["--system", "b", "--prompt", "a"], "--system is a part of a conversation; add --chat"),
        (["--threads", 0, "--prompt", "a"], "--threads 0 is not in [1, "),
        (["--threads", 100_000, "--prompt", "a"], "--threads 100000 is not in [1, "),
        (["--max-new-tokens", 0, "--prompt", "a"], "--max-new-tokens 0 is not at least 1"),
        (["--device", "tpu", "--prompt", "a"], "--device tpu is not cpu, cuda or cuda:N"),
        (["--device", "cuda:99", "--prompt", "a"], "--device cuda:99, "),
        (["--prompt", "a\udcff"], "the prompt is no text in UTF-8"),
        ([], "there is no prompt; give --prompt TEXT, or a text on standard input"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[object], line: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, model, *arguments)
    assert (code, out) == (1, "")
    assert line in err
    assert len(err.splitlines()) == 1


def test_an_unknown_form_of_the_kernels_is_refused_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "avx")
    code, out, err = run(capsys, model, "--prompt", "a")
    assert (code, out) == (1, "")
    assert err.startswith("error: SPARSEMEND_ENGINE=avx is not one of: portable, avx2")
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_none_is_refused_before_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    for name, line in [
        ("nothing", "does not exist; give a model folder"),
        ("file", "is a file; give the folder of a model"),
        ("empty", "has no config.json; give a folder written by save_pretrained"),
        ("run", "is a run folder without a model/; repeat its run with export=true"),
    ]:
        code, _, err = run(capsys, tmp_path / name, "--prompt", "a")
        assert code == 1
        assert line in err
        assert len(err.splitlines()) == 1


def test_an_interrupt_ends_with_the_text_so_far_and_its_rates(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []

    def interrupt(text: str) -> None:
        parts.append(text)
        if len(parts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(speak, "write", interrupt)
    code, _, err = run(capsys, model, "--prompt", "a module", "--greedy")
    assert code == 130
    assert "prefill" in err
    assert "interrupted" in err
    assert parts[-1] == "\n"


def test_a_repository_with_packed_weights_is_read_by_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--me--mended"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = ("--prompt", "a module", "--greedy", "--max-new-tokens", 4)
    code, out, err = run(capsys, "me/mended", *asked)
    assert (code, out) == run(capsys, model, *asked)[:2], err
    assert code == 0
    code, _, err = run(capsys, "me/other", *asked)
    assert code == 1
    assert "model me/other cannot" in err


def test_a_card_on_a_machine_without_one_is_refused_before_torch(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "may_have_gpu", lambda: False)
    monkeypatch.setattr(speak, "speak", lambda *arguments, **settings: pytest.fail("went on"))
    code, _, err = run(capsys, model, "--prompt", "a", "--device", "cuda")
    assert code == 1
    assert "--device cuda, but this machine has no GPU driver" in err
    assert len(err.splitlines()) == 1


def test_a_lack_of_memory_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        torch.empty(1 << 62, dtype=torch.int8)

    monkeypatch.setattr(speak, "generate", fail)
    code, out, err = run(capsys, model, "--prompt", "a module")
    assert (code, out) == (1, "")
    assert "error: there is not enough memory (" in err
    assert "Traceback" not in err


def test_a_folder_with_code_of_its_own_is_refused_with_the_flag_that_trusts_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code_of_its_own = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    folder = with_json(model, tmp_path / "model", "config.json", **code_of_its_own)
    code, _, err = run(capsys, folder, "--prompt", "a")
    assert code == 1
    assert "set --trust-remote-code if you trust it" in err


def test_a_closed_standard_output_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run(capsys, model, "--prompt", "a")
    assert code == 1
    assert "standard output is closed" in err


def with_json(model: Path, folder: Path, name: str, **changes: object) -> Path:
    """A copy of the model in which a JSON file says something else."""
    shutil.copytree(model, folder)
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True},
        {"stop_strings": ["never"]},
    ],
)
def test_a_generation_config_for_other_ends_still_gives_one_text(
    settings: dict[str, object], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--prompt", "a module", "--greedy", "--max-new-tokens", 4)
    expected = run(capsys, model, *asked)[1]
    folder = with_json(model, tmp_path / "model", "generation_config.json", **settings)
    code, out, err = run(capsys, folder, *asked)
    assert (code, out) == (0, expected), err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires"),
        ({"eos_token_id": "x"}, "TypeError"),
        ({"cache_implementation": "quantized"}, "quanto"),
    ],
)
def test_a_generation_config_that_cannot_be_is_one_line(
    settings: dict[str, object],
    line: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = with_json(model, tmp_path / "model", "generation_config.json", **settings)
    code, out, err = run(capsys, folder, "--prompt", "a module", "--max-new-tokens", 2)
    assert (code, out) == (1, "")
    assert line in err
    assert "see what its generation_config.json asks for" in err
    assert len(err.splitlines()) == 1


def test_damaged_weights_are_refused_where_their_logits_are_not_finite(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (path,) = folder.glob("packed-*")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path, metadata)
    for more in (("--greedy",), ("--temperature", 1)):
        code, out, err = run(capsys, folder, "--prompt", "a", "--max-new-tokens", 2, *more)
        assert (code, out) == (1, "")
        assert re.search(r"gives logits that are not finite after \d tokens", err)
        assert len(err.splitlines()) == 1
