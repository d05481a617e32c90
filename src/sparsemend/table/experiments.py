"""Which experiment repeats a published number, read from the yamls themselves (no composing).

An experiment is conf/experiment/<paper>/<table>.yaml: a diff on run.yaml whose sweeper parameters
span the rows and models of that table.  It covers a cell when one of its jobs has the cell's model,
pruner, schedule, method, amount and variant, measures its metric, and does so on windows of the
published length.  Unrepaired and dense cells come with any job that prunes alike.  A pruner or
schedule that a source does not state is what the paper's experiment takes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sparsemend.config.compose import expand
from sparsemend.config.locations import conf_folder
from sparsemend.config.members import member_yaml
from sparsemend.result.runs import WIKITEXT
from sparsemend.table.measurement import AVERAGE, AVERAGED, PERPLEXITY, measurement_of, suites
from sparsemend.table.published import UNKNOWN, Published

GROUPS = ("model", "data", "pruner", "sparsity_schedule", "method", "evaluation")
CLAIMS = "claims"  # a folder of experiments that repeat no table
TEXTS = (WIKITEXT, "wikitext")  # a source that only says wikitext is repeated on WikiText-2
CONTEXT = "model.context_length"
DIFFERENCE = "sparsity_schedule.common_difference"
STEPS = "method.max_steps"
SEQLEN = "data.seqlen"  # of training windows; None where it is the context
SAMPLES = "data.calibration_samples"
PAPERS_SAMPLES = 128  # where a data set leaves the number to the text inside it
SUITE = "evaluation.zero_shot.suite"
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Job:
    """One job of an experiment: every group and key that a table may name."""

    experiment: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]

    @property
    def schedule(self) -> str:
        """The allocation by name; a progression without slope is uniform."""
        difference = self.values.get(DIFFERENCE)
        flat = difference is not None and float(difference) == 0
        return "uniform" if flat else str(self.values["sparsity_schedule"])

    def prunes(self, cell: Published) -> bool:
        """Whether the job's pruned model is that of the cell."""
        values = self.values
        pattern = "unstructured" if cell.pattern == UNKNOWN else cell.pattern
        return (
            cell.sparsity != UNKNOWN
            and cell.pruner in (values["pruner"], UNKNOWN)
            and cell.schedule in (self.schedule, UNKNOWN)
            and abs(float(values["sparsity"]) - float(cell.sparsity)) < 1e-9
            and str(values["pattern"]) == pattern
        )

    def measures(self, cell: Published) -> bool:
        """Whether the job measures the cell's metric, by the published protocol."""
        measurement = measurement_of(cell)
        if measurement is None or measurement.evaluation not in self.values["evaluation"]:
            return False
        if cell.dataset == AVERAGE:
            return bool(self.values[SUITE] == AVERAGED[cell.paper])
        if measurement.evaluation != PERPLEXITY:
            return cell.dataset in suites()[self.values[SUITE]]
        tested = tested_text(self.values["data"]) == WIKITEXT and cell.dataset in TEXTS
        return tested and cell.seqlen in (UNKNOWN, str(self.values[CONTEXT]))

    def covers(self, cell: Published) -> bool:
        """Whether the job repeats the cell."""
        if self.values["model"] != cell.model or not self.measures(cell):
            return False
        if cell.dense:
            return True
        if not self.prunes(cell):
            return False
        plain = cell.method == "none" and cell.variant == UNKNOWN
        same = (self.values["method"], self.values["variant"]) == (cell.method, cell.variant)
        return plain or same


def tested_text(data: str) -> str:
    """The text that perplexity/test reads with a member of `data`, which may hold another one."""
    source = member_yaml("data", data)
    while isinstance(source.get("text"), Mapping):
        source = source["text"]
    return str(source.get("test_on", source["name"]))


@dataclass(frozen=True)
class Experiment:
    """A yaml under conf/experiment/<paper>/."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def paper(self) -> str:
        return self.name.partition("/")[0]

    def job_for(self, cell: Published) -> Job | None:
        """The first job that covers the cell, preferably one with the cell's own method."""
        jobs = [job for job in self.jobs if job.covers(cell)]
        same = [job for job in jobs if job.values["method"] == cell.method]
        return next(iter(same or jobs), None)


@cache
def experiments() -> tuple[Experiment, ...]:
    """Every paper's experiments, by name."""
    folder = conf_folder() / "experiment"
    paths = (path for path in folder.glob("*/*.yaml") if path.parent.name != CLAIMS)
    return tuple(_read(path, folder) for path in sorted(paths))


def job_for(cell: Published) -> Job | None:
    """The job that repeats a cell: of the table's own experiment, else of another of its paper.

    For a difference of two rows it is the job of the first row, if the second row has a job too.
    """
    if cell.sides is not None:
        jobs = [job_for(side) for side in cell.sides]
        return jobs[0] if all(jobs) else None
    candidates = [e for e in experiments() if e.paper == cell.paper]
    for experiment in sorted(candidates, key=lambda e: e.name != cell.title):
        if job := experiment.job_for(cell):
            plain = cell.method == "none" or cell.dense
            return without_training(job) if plain and int(job.values[STEPS]) else job
    return None


def without_training(job: Job) -> Job:
    """The job that prunes and measures like this one, but repairs nothing."""
    content = _content(conf_folder() / "experiment" / f"{job.experiment}.yaml")
    swept = ("method=", "method.", "variant=")
    kept = [line for line in job.overrides if not line.startswith(swept)]
    # method none has none of the keys that the experiment sets for its method
    dropped = [f"~method.{key}" for key in content.get("method", {})]
    values = {**job.values, "method": "none", STEPS: 0, "variant": UNKNOWN}
    return Job(job.experiment, (*kept, "method=none", *dropped, "variant=null"), values)


def _read(path: Path, folder: Path) -> Experiment:
    name = str(path.relative_to(folder).with_suffix(""))
    content = _content(path)
    params = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    base = _values(_content(conf_folder() / "run.yaml")) | _values(content)
    lines = [f"{key}={value}" for key, value in params.items()]
    expanded = expand(OverridesParser.create().parse_overrides(lines))
    return Experiment(name, tuple(_job(name, base, overrides) for overrides in expanded))


def _job(name: str, base: Mapping[str, Any], overrides: Sequence[str]) -> Job:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {**base, **{override.key_or_group: override.value() for override in parsed}}
    values.setdefault(CONTEXT, _context_length(str(values["model"])))
    values.setdefault(STEPS, 0)
    for key, value in _windows(str(values["data"])).items():
        values.setdefault(key, value)
    # a swept key may tell rows apart by their variant: "r${method.rank} lr1e-4"
    values["variant"] = INTERPOLATION.sub(lambda m: str(values[m[1]]), str(values["variant"]))
    return Job(name, tuple(overrides), values)


def _values(content: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a yaml: members by group, top-level keys, and nested keys by dotted name."""
    values = dict(_members(content.get("defaults", [])))
    for key in ("sparsity", "pattern", "variant"):
        if key in content:
            values[key] = content[key] if content[key] is not None else UNKNOWN
    for dotted in (CONTEXT, DIFFERENCE, STEPS):
        group, key = dotted.split(".")
        if key in content.get(group, {}):
            values[dotted] = content[group][key]
    if suite := content.get("evaluation", {}).get("zero_shot", {}).get("suite"):
        values[SUITE] = suite
    for key in (SEQLEN, SAMPLES):
        if (inner := key.partition(".")[2]) in content.get("data", {}):
            values[key] = content["data"][inner]
    method = content.get("method", {})
    values["windows_per_step"] = method.get("windows_per_step", 1)
    return values


def _members(defaults: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for key, value in itertools.chain.from_iterable(
        item.items() for item in defaults if isinstance(item, Mapping)
    ):
        group = key.removeprefix("override ").removeprefix("/")
        if group in GROUPS:
            yield group, value


@cache
def _context_length(model: str) -> int:
    folder = conf_folder() / "model"
    local = _content(folder / "local.yaml")["context_length"]
    return int(_content(folder / f"{model}.yaml").get("context_length", local))


@cache
def _windows(data: str) -> dict[str, int | None]:
    """Length of training windows (None: the model's context) and number of calibration windows."""
    content = _content(conf_folder() / "data" / f"{data}.yaml")
    seqlen = content.get("seqlen")
    samples = content.get("calibration_samples")
    return {
        SEQLEN: seqlen if isinstance(seqlen, int) else None,
        SAMPLES: samples if isinstance(samples, int) else PAPERS_SAMPLES,
    }


@cache
def _content(path: Path) -> dict[str, Any]:
    """The text of a yaml as plain values, read once; not to be changed."""
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # type: ignore[assignment]
    return content
