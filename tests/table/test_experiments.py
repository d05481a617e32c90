import difflib
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from support.tiers import slow_but_for

from sparsemend.config.compose import compose_command
from sparsemend.config.locations import conf_folder
from sparsemend.preflight import check as preflight
from sparsemend.table.experiments import experiments, job_for, plain_value
from sparsemend.table.job import CONTEXT, Job
from sparsemend.table.listing import command_of
from sparsemend.table.needs import needs_of
from sparsemend.table.published import find_cell, published_numbers

EXPERIMENTS = {experiment.name: experiment for experiment in experiments()}
# one that only prunes, one that repairs block by block, one that trains and measures tasks
QUICK = ("dsnot/opt_125m", "ebft/dsnot", "sp_lora/fineweb_edu")
EACH = slow_but_for(EXPERIMENTS, QUICK)
# experiments on another text -> the tables of which they repeat a column
UNSTRUCTURED = {f"table{number}" for number in range(10, 16)}
SEVERAL = {
    "alps/c4": UNSTRUCTURED,
    "alps/ptb": UNSTRUCTURED,
    "alps/c4_patterns": {"table16", "table17"},
    "alps/ptb_patterns": {"table16", "table17"},
    "rethinking/c4": {"table1", "table3"},
    "rethinking/ptb": {"table1", "table3"},
}
READ_GROUPS = ("model", "pruner", "sparsity_schedule", "method", "data")


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), job_name="sparsemend"):
        yield


def lines_of(name: str, *more: str) -> list[list[str]]:
    return [[f"experiment={name}", *job.overrides, *more] for job in EXPERIMENTS[name].jobs]


def telling_jobs() -> dict[str, list[Job]]:
    """Of every experiment the first job, and those with a value that no job before them has."""
    seen: set[str] = set()
    telling: dict[str, list[Job]] = {}
    for name, experiment in EXPERIMENTS.items():
        telling[name] = [experiment.jobs[0]]
        for job in experiment.jobs[1:]:
            if not seen.issuperset(job.overrides):
                telling[name].append(job)
            seen.update(job.overrides)
    return telling


TELLING = telling_jobs()


@pytest.mark.parametrize("name", EACH)
def test_what_is_read_of_an_experiment_is_what_composes(name: str) -> None:
    for job in TELLING[name]:
        lines = [f"experiment={name}", *job.overrides]
        cfg = compose("run", lines, return_hydra_config=True)
        choices = cfg.hydra.runtime.choices
        for group in READ_GROUPS:
            assert choices[group] == job.values[group], (group, lines)
        assert list(cfg.evaluation) == job.values["evaluation"]
        assert cfg.sparsity == job.values["sparsity"]
        assert cfg.pattern == str(job.values["pattern"])
        assert (cfg.variant or "-") == job.values["variant"]
        assert cfg.model.context_length == job.values[CONTEXT]


def scaled(name: str) -> DictConfig:
    """The first job at the scale that its header names."""
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text()
    scale = re.search(rf"experiment={name} scale=(\S+)", text)
    assert scale is not None, f"{name} does not say how it runs tiny"
    lines = [line for line in lines_of(name)[0] if not line.startswith("model=")]
    return compose("run", [*lines, f"scale={scale[1]}"])


@pytest.mark.parametrize("name", EACH)
def test_an_experiment_runs_with_the_tiny_model_substituted(name: str) -> None:
    cfg = scaled(name)
    assert (cfg.model.name, cfg.data.name, cfg.hardware.accelerator) == (
        "tiny",
        "python_docs",
        "cpu",
    )
    assert cfg.model.context_length == 256
    preflight.check(cfg)
    if "zero_shot" in cfg.evaluation:
        assert cfg.evaluation.zero_shot.suite == "docs"  # offline


def test_an_experiment_is_named_after_a_published_table() -> None:
    known = {cell.title for cell in published_numbers()}
    without_numbers = ("lors", "losa", "seft")  # tables of these could not be read
    for experiment in EXPERIMENTS:
        text = (conf_folder() / "experiment" / f"{experiment}.yaml").read_text()
        name = yaml.safe_load(text)["name"]
        several = name in SEVERAL and name == experiment
        assert name in known or several or experiment.startswith(without_numbers), (
            f"{name} is no published table; nearest: {difflib.get_close_matches(name, known)}"
        )


def test_an_experiment_of_several_tables_repeats_cells_of_each_on_its_text() -> None:
    repeated: dict[str, set[str]] = {name: set() for name in SEVERAL}
    for cell in published_numbers():
        job = job_for(cell)
        if job is not None and job.experiment in SEVERAL and not cell.dense:
            repeated[job.experiment].add(cell.table)
            assert cell.dataset == ("ptb" if "ptb" in job.experiment else "c4")
    assert repeated == SEVERAL


def forms() -> list[str]:
    """The quick experiments, then the smallest of every other method and set of swept keys."""
    first: dict[object, str] = {}
    by_jobs = sorted(EXPERIMENTS, key=lambda name: len(EXPERIMENTS[name].jobs))
    for name in (*QUICK, *by_jobs):
        job = EXPERIMENTS[name].jobs[0]
        swept = tuple(line.partition("=")[0] for line in job.overrides)
        first.setdefault((job.values["method"], swept), name)
    return list(first.values())


@pytest.mark.parametrize("name", slow_but_for(forms(), QUICK))
def test_the_command_sweeps_an_experiment_without_further_words(name: str) -> None:
    composed = compose_command([f"experiment={name}"], multirun=True)
    configs, sweep = composed.configs, composed.sweep
    assert sweep
    assert configs[0].name == compose("run", [f"experiment={name}"]).name


def test_a_plain_value_is_what_hydra_reads() -> None:
    parser = OverridesParser.create()
    for word in ("3", "-0.02", "1e-3", ".5", "2.", "true", "null", "2:4", "llama2_7b", "0.5b"):
        value = parser.parse_overrides([f"x={word}"])[0].value()
        assert (plain_value(word), type(plain_value(word))) == (value, type(value)), word


def test_a_cell_is_covered_by_the_job_that_repeats_it() -> None:
    cell = find_cell("wanda/readme/llama2_7b/2:4/wanda/uniform/none/wikitext2/perplexity")
    job = job_for(cell)
    assert job is not None
    assert (job.experiment, job.values["pattern"], job.values[CONTEXT]) == (
        "wanda/readme",
        "2:4",
        4096,
    )


def test_unrepaired_and_dense_cells_come_with_a_repaired_job() -> None:
    for row in ("0.6/wanda/uniform/none", "0/none/-/none"):
        job = job_for(find_cell(f"dsnot/table1/llama2_7b/{row}/wikitext2/perplexity"))
        assert job is not None
        assert job.values["method"] == "dsnot"


def plain_cells() -> list[str]:
    """One unrepaired cell of every experiment that trains."""
    identities: dict[str, str] = {}
    for cell in published_numbers():
        job = job_for(cell)
        if job is not None and any(line.startswith("~method.") for line in job.overrides):
            identities.setdefault(job.experiment, cell.identity)
    return list(identities.values())


PLAIN_CELLS = plain_cells()


@pytest.mark.parametrize("identity", slow_but_for(PLAIN_CELLS, PLAIN_CELLS[:1]))
def test_an_unrepaired_cell_is_measured_without_training(identity: str) -> None:
    line = command_of(identity, None, [])
    cfg = compose("run", line[1:])
    assert dict(cfg.method) == {"_target_": "sparsemend.method.none.NoRepair"}
    assert cfg.variant is None
    job = job_for(find_cell(identity))
    assert job is not None
    needed = needs_of(job)
    assert needed is not None
    assert needed.flops < 1.2e14 * 3600 * 4  # hours, not weeks
    tiny = compose("run", command_of(identity, "tiny", [])[1:])
    preflight.check(tiny)


def test_a_flat_progression_is_the_uniform_row() -> None:
    name = "atp/headline/llama2_7b/0.7/wanda/atp/none~atp_minus_uniform/wikitext2/perplexity_change"
    cell = find_cell(name)
    assert cell.sides is not None
    jobs = [EXPERIMENTS["atp/headline"].job_for(side) for side in cell.sides]
    differences = [job.values["sparsity_schedule.common_difference"] for job in jobs if job]
    assert differences == [0.002, 0]
    assert job_for(cell) == jobs[0]


def test_another_recipe_of_the_same_method_is_not_covered() -> None:
    name = "sp_lora/log/llama2_7b/2:4/wanda/uniform/masked_lora~{}/wikitext2/perplexity"
    assert job_for(find_cell(name.format("alpaca_gpt4_r16_lr1e_3"))) is not None
    slim = job_for(find_cell(name.format("slimpajama_0.5b_r16_lr1e_3")))
    assert slim is not None
    assert slim.values["data"] == "slimpajama"
    unknown = replace(find_cell(name.format("alpaca_gpt4_r16_lr1e_3")), variant="Alpaca r8")
    assert job_for(unknown) is None


def test_a_swept_key_tells_the_rows_of_one_experiment_apart() -> None:
    name = "sp_lora/log/llama2_7b/2:4/wanda/uniform/masked_lora~slimpajama_0.5b_r{}_lr1e_4/rte/acc"
    for rank in (16, 128):
        job = job_for(find_cell(name.format(rank)))
        assert job is not None
        assert job.values["method.rank"] == rank
        assert job.values["variant"] == f"SlimPajama-0.5B r{rank} lr1e-4"


def test_what_a_source_leaves_open_is_what_its_papers_experiment_takes() -> None:
    cell = find_cell("ebft/abstract/llama_7b/0.7/-/-/reconstruct/wikitext2/perplexity")
    job = job_for(cell)
    assert job is not None
    assert (job.values["pruner"], job.schedule) == ("wanda", "uniform")
    assert job_for(replace(cell, paper="wanda")) is None


def test_a_mean_is_covered_by_the_papers_own_seven_tasks() -> None:
    cell = find_cell(
        "sp_lora/log/llama2_7b/2:4/wanda/uniform/masked_lora~alpaca_gpt4_r16_lr1e_3/"
        "zero_shot_average_7/acc_norm_if_available"
    )
    job = job_for(cell)
    assert job is not None
    assert job.covers(cell)
    other = replace(job, values={**job.values, "evaluation.zero_shot.suite": "atp"})
    assert not other.covers(cell)


def test_a_task_outside_the_suite_is_not_covered() -> None:
    name = "sp_lora/log/llama2_7b/2:4/wanda/uniform/masked_lora~alpaca_gpt4_r16_lr1e_3/boolq/acc"
    cell = find_cell(name)
    assert job_for(cell) is not None
    assert job_for(replace(cell, dataset="piqa")) is None


def test_another_window_length_is_not_covered() -> None:
    cell = find_cell("dlp/readme/llama2_7b/0.7/wanda/uniform/none/wikitext2/perplexity")
    assert job_for(cell) is not None
    longer = replace(cell, seqlen="4096")
    assert job_for(longer) is None
