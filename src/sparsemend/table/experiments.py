"""Which experiment repeats a published number, read from the yamls themselves (no composing).

An experiment is conf/experiment/<paper>/<table>.yaml: a diff on run.yaml whose sweeper parameters
span the rows and models of that table.  It covers a cell when one of its jobs does (job.py).  A
pruner or schedule that a source does not state is what the paper's experiment takes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from sparsemend.config.locations import conf_folder
from sparsemend.table.job import CONTEXT, DIFFERENCE, SAMPLES, SEQLEN, STEPS, SUITE, Job
from sparsemend.table.measurement import measurement_of
from sparsemend.table.published import UNKNOWN, Published

GROUPS = ("model", "data", "pruner", "sparsity_schedule", "method", "evaluation")
CLAIMS = "claims"  # a folder of experiments that repeat no table
PAPERS_SAMPLES = 128  # where a data set leaves the number to the text inside it
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
PLAIN = re.compile(r"[\w.:,+-]+")  # values of a sweep that Hydra's grammar reads as they stand
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Experiment:
    """A yaml under conf/experiment/<paper>/."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def paper(self) -> str:
        return self.name.partition("/")[0]

    @cached_property
    def by_model(self) -> Mapping[str, Sequence[Job]]:
        """The jobs of every model."""
        jobs: dict[str, list[Job]] = {}
        for job in self.jobs:
            jobs.setdefault(str(job.values["model"]), []).append(job)
        return jobs

    def job_for(self, cell: Published) -> Job | None:
        """The first job that covers the cell, preferably one with the cell's own method."""
        jobs = [job for job in self.by_model.get(cell.model, ()) if job.covers(cell)]
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
    if measurement_of(cell) is None:
        return None
    candidates = _of_papers().get(cell.paper, ())
    for experiment in sorted(candidates, key=lambda e: e.name != cell.title):
        if job := experiment.job_for(cell):
            plain = cell.method == "none" or cell.dense
            return without_training(job) if plain and int(job.values[STEPS]) else job
    return None


@cache
def _of_papers() -> Mapping[str, Sequence[Experiment]]:
    of_papers: dict[str, list[Experiment]] = {}
    for experiment in experiments():
        of_papers.setdefault(experiment.paper, []).append(experiment)
    return of_papers


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
    swept = [_choices(key, str(value)) for key, value in params.items()]
    return Experiment(name, tuple(_job(name, base, job) for job in itertools.product(*swept)))


@cache
def _choices(key: str, text: str) -> Sequence[tuple[str, str, Any]]:
    """(key, override line, value) of every value that a sweep gives a key."""
    if PLAIN.fullmatch(text):  # Hydra's parser would take most of the command's time
        return [(key, f"{key}={part}", plain_value(part)) for part in text.split(",")]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from sparsemend.config.jobs import expand

    parser = OverridesParser.create()
    lines = [job[0] for job in expand(parser.parse_overrides([f"{key}={text}"]))]
    return [(key, line, parser.parse_overrides([line])[0].value()) for line in lines]


def plain_value(text: str) -> Any:
    """The value of a word of PLAIN as Hydra reads it."""
    if text in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[text]
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text


def _job(name: str, base: Mapping[str, Any], swept: Sequence[tuple[str, str, Any]]) -> Job:
    values = {**base, **{key: value for key, _, value in swept}}
    values.setdefault(CONTEXT, _context_length(str(values["model"])))
    values.setdefault(STEPS, 0)
    for key, value in _windows(str(values["data"])).items():
        values.setdefault(key, value)
    # a swept key may tell rows apart by their variant: "r${method.rank} lr1e-4"
    values["variant"] = INTERPOLATION.sub(lambda m: str(values[m[1]]), str(values["variant"]))
    return Job(name, tuple(line for _, line, _ in swept), values)


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
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    return content
