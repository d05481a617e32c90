"""The command sparsemend-bench: what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.command_runs import here, python
from support.configs import compose

from sparsemend.bench import preflight as bench_preflight
from sparsemend.bench.choices import compose_section
from sparsemend.cli import bench
from sparsemend.config.compose import compose_command
from sparsemend.config.locations import conf_folder
from sparsemend.errors import OverrideError

SMALL = (
    "shape.hidden=32",
    "shape.intermediate=48",
    "shape.blocks=2",
    "shape.heads=4",
    "shape.key_value_heads=2",
    "shape.vocabulary=64",
    "suite.tokens=[[2,8]]",
    "rounds=2",
    "threads=1",
)
MINE = "+suite.methods.mine={method: masked_full}"


def check(*lines: str) -> None:
    composed = compose_command(list(lines), config_name="bench", command="sparsemend-bench")
    bench_preflight.check(composed.configs[0], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rounds=0", "rounds=0 is not an integer of at least 1; set rounds=1"),
        ("rounds=null", "rounds=None is not an integer"),
        ("threads=0", "threads=0 is not"),
        ("threads=100000", "threads=100000 is above 1024; set threads=1"),
        ("sparsity=1", r"sparsity 1 is not in \[0, 1\)"),
        ("dtype=float31", "dtype=float31 is not one of float32"),
        ("device=gpu", "device=gpu is not cpu, cuda or cuda:N"),
        ("shape.blocks=0", "shape.blocks=0 is not"),
        ("shape.hidden=100", "set shape.hidden=96"),
        ("shape.key_value_heads=3", "not a multiple of shape.key_value_heads=3"),
        ("suite.baseline=maskd_lora", "none of: .*; nearest: masked_lora"),
        ("suite.only=[lrs]", "suite.only names 'lrs', .*; nearest: lors"),
        ("suite.only=[]", "is not a list of labels"),
        ("suite.tokens=[[2,1]]", "length at least 2"),
        ("suite.tokens=[2,512]", "is not a list of"),
        ("suite.activation_checkpointing=[]", "not a list of true and false"),
        ("suite=gradients suite.densities=[0]", r"not a list of fractions in \(0, 1\]"),
        ("suite=gradients suite.rank=0", "suite.rank=0 is not an integer of at least 1"),
        ("suite=inference suite.clock=sun", "suite.clock=sun is not wall or cpu"),
        ("suite=inference suite.clock=cpu threads=2", "set threads=1"),
        ("suite=inference suite.clock=cpu threads=1 device=cuda", "set suite.clock=wall"),
        ("suite=batches suite.examples=3", "suite.windows=4 is above suite.examples=3"),
        ("suite=batches suite.spread=-1", r"suite.spread=-1 is not in \[0, inf\)"),
        ("suite=merge suite.dtypes=[bfloat]", "is not a list of float32, bfloat16, float16"),
        ("suite=inference suite.inputs=0", "suite.inputs=0 is not an integer of at least 1"),
        ("suite=decode suite.lengths=[1,0]", "suite.lengths=.* is not a list of integers of at"),
        ("suite=decode suite.context=0", "suite.context=0 is not an integer of at least 1"),
        ("suite=decode dtype=float16", "set device=cpu dtype=bfloat16"),
        ("suite=search suite.trials=0", "suite.trials=0 is not an integer of at least 1"),
        ("suite=scaling suite.samples=4", "suite.samples=4 are not two or more rising integers"),
        ("suite=scaling suite.blocks=[4]", r"for example suite\.blocks=\[1,2\]"),
        ("suite=scaling suite.seqlen=[8,4]", "not two or more rising integers of at least 2"),
        ("suite=scaling suite.hidden=[64,100]", "suite.hidden has 100, .*; give multiples of 64"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_bound_and_remedy(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(*line.split())


def test_an_unknown_form_of_the_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMEND_ENGINE", "avx")
    with pytest.raises(ValueError, match="SPARSEMEND_ENGINE=avx is not one of: portable, avx2"):
        check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shpe=small", "nearest: shape\n`sparsemend-bench --help`"),
        ("shape=smal", "nearest: small\n"),
        ("suite=prunin", "nearest: pruning\n"),
        ("hidden=64", "nearest: shape.hidden\n"),
        ("suite.baselin=lora", "nearest: suite.baseline\n"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(line: str, message: str) -> None:
    with pytest.raises(OverrideError) as caught:
        check(line)
    assert message in str(caught.value)


def test_a_label_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(OverrideError, match=r"suite\.methods\.mine: unknown method 'masked_ful'"):
        check(
            "+suite.methods.mine={method: masked_ful}", "suite.baseline=mine", "suite.only=[mine]"
        )


def test_only_the_labels_that_are_measured_must_exist() -> None:
    check(
        MINE, "+suite.methods.other={method: nothing}", "suite.baseline=mine", "suite.only=[mine]"
    )


@pytest.mark.parametrize("suite", ["pruning", "search", "scaling"])
def test_a_suite_of_pruning_is_accepted_as_it_is(suite: str) -> None:
    check(f"suite={suite}")


@pytest.mark.parametrize("shape", ["small", "llama_1b", "llama_7b_slice"])
def test_every_shape_gives_the_bench_its_dtype_and_tokens(shape: str) -> None:
    cfg = compose("bench", [f"shape={shape}"])
    assert cfg.dtype == cfg.shape.dtype
    assert cfg.suite.tokens == cfg.shape.tokens
    check(f"shape={shape}", MINE, "suite.baseline=mine", "suite.only=[mine]")


def labels() -> Mapping[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_folder() / "suite" / "methods.yaml"))
    assert isinstance(loaded, dict)
    methods: dict[str, Any] = loaded["methods"]
    return methods


@pytest.mark.parametrize("label", labels())
def test_every_label_of_the_yaml_stands_for_a_method(label: str) -> None:
    compose_section(f"suite.methods.{label}", labels()[label], [])


def test_help_explains_itself_and_names_every_suite_and_shape(tmp_path: Path) -> None:
    done = here(bench.main, ["sparsemend-bench", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sparsemend-bench: what repair methods and pruners cost")
    for group in ("suite", "shape"):
        for path in (conf_folder() / group).glob("*.yaml"):
            assert f" {path.stem} " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_without_importing_torch_or_leaving_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sparsemend.cli import bench\n"
        "sys.argv = ['sparsemend-bench', 'rounds=0']\n"
        "try:\n    bench.main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))\n"
    )
    done = python(["-c", code], tmp_path)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr == "error: rounds=0 is not an integer of at least 1; set rounds=1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, printed) of a bench with a method from the user's own folder, in bf16."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "mine.yaml").write_text("defaults: [masked_lora, _self_]\n")
    lines = [
        "--config-dir=conf",
        "+suite.methods.mine={method: mine, rank: 2}",
        "suite.baseline=mine",
        "suite.only=[masked_full]",
        "dtype=bfloat16",
        "hydra.run.dir=out",
    ]
    done = here(bench.main, ["sparsemend-bench", *SMALL, *lines], folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_the_json_holds_every_round_the_settings_and_the_machine(
    finished: tuple[Path, str],
) -> None:
    content = json.loads((finished[0] / "bench.json").read_text(encoding="utf-8"))
    assert content["status"] == "finished"
    assert content["config"]["shape"]["hidden"] == 32
    assert content["config"]["suite"]["methods"]["mine"]["rank"] == 2
    assert content["provenance"]["packages"]["torch"]
    assert content["machine"]["threads"] == 1
    assert [section["title"] for section in content["sections"]] == [
        "2 x 8 tokens",
        "2 x 8 tokens, activation checkpointing",
    ]
    mine, full = content["sections"][0]["rows"]
    assert (mine["label"], len(mine["seconds"]), mine["ratios"]) == ("mine", 2, [1.0, 1.0])
    assert mine["process_peak_bytes"] > mine["peak_bytes"] > 0
    assert (full["seconds"], full["ratios"]) == ([], [])
    assert "float32" in full["refused"]


def test_the_markdown_shows_what_the_json_holds(finished: tuple[Path, str]) -> None:
    content = json.loads((finished[0] / "bench.json").read_text(encoding="utf-8"))
    text = (finished[0] / "bench.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| mine ")]
    assert len(lines) == len(content["sections"]) == 2
    for line, section in zip(lines, content["sections"], strict=True):
        row = section["rows"][0]
        shown = [cell.strip() for cell in line.strip("|").split("|")]
        assert shown[0] == row["label"]
        assert float(shown[1]) == pytest.approx(row["median_seconds"], rel=5e-3, abs=5e-4)
        assert shown[2:4] == ["1.000", "1.000 - 1.000"]
        assert shown[4] == f"{row['peak_bytes'] / 2**20:,.0f}"
        assert float(shown[5]) == pytest.approx(row["extra_saved_per_weight"], abs=0.005)
        assert shown[7] == f"{row['trained_parameters']:,}"
    assert text.count("masked_full: method=masked_full trains the weights in place") == 2


def test_the_terminal_shows_the_tables_and_where_they_are(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert "random LLaMA, hidden 32" in printed
    assert "activation checkpointing" in printed
    assert f"result: {folder / 'bench.md'}" in printed
