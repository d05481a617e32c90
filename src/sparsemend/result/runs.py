"""Finished runs, read from their result.json, and the table rows that each one measured.

Every run measures three states: the dense model, the pruned one and the repaired one.  The first
two belong to rows without repair, whatever method the run went on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemend.config.keys import keys_that_do_not
from sparsemend.config.members import member_name
from sparsemend.config.values import leaves
from sparsemend.names import HARNESS, MEAN, METRIC, RESULT
from sparsemend.result.folder import load_result
from sparsemend.result.protocol import Protocol, measured_text, shots_of, solved_examples
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import StageCost

WIKITEXT = "wikitext2"
NOT_SETTINGS = frozenset(keys_that_do_not("tells_rows_apart"))
CHECKPOINT = ("path", "revision", "attention")  # one model name may mean several, as `local` does


@dataclass(frozen=True, order=True)
class Row:
    """The choices that define a row of a table; members are named as in conf/."""

    sparsity: float
    pattern: str
    pruner: str
    schedule: str
    method: str
    variant: str

    @property
    def label(self) -> str:
        """`wanda + dsnot, 0.6` and the like."""
        if self.pruner == "none":
            return "dense"
        parts = [self.pruner]
        if self.schedule != "uniform":
            parts.append(self.schedule)
        if self.method != "none":
            parts.append(self.method)
        return " + ".join(parts)

    @property
    def amount(self) -> str:
        """The pattern of an N:M row, else the sparsity."""
        return f"{self.sparsity:g}" if self.pattern in ("-", "unstructured") else self.pattern


DENSE = Row(0.0, "-", "none", "-", "none", "-")


@dataclass(frozen=True)
class RunRecord:
    """One finished run."""

    folder: Path
    result: RunResult

    @property
    def config(self) -> Mapping[str, Any]:
        return self.result.config

    @property
    def name(self) -> str:
        return str(self.config.get("name", "default"))

    @property
    def model(self) -> str:
        """The model's name, which says of a debug run that it is the first blocks of that model."""
        debug = self.config.get("debug")
        cut = f" (DEBUG RUN, {debug['blocks']} blocks)" if debug else ""
        return f"{self.config['model']['name']}{cut}"

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def dirty(self) -> bool:
        """Whether the sources were not exactly a commit, or no commit is known."""
        return self.result.provenance.dirty is not False

    @property
    def foldable(self) -> bool:
        """Whether it ends in one sparse matrix per linear."""
        return self.result.repair.foldable is not False

    @property
    def sparsity(self) -> float:
        """The sparsity of the effective weights: about 0 beside an open adapter."""
        counts = self.result.sparsity
        achieved = counts.achieved if counts.effective is None else counts.effective
        return float(self._counted_value(achieved, "achieved"))

    def _counted_value(self, value: float | None, key: str) -> float:
        if value is None:
            raise ValueError(f"{self.folder / RESULT} has no sparsity.{key}; run it again")
        return value

    @property
    def trained_parameters(self) -> int:
        """Number of parameters that the repair trained, 0 where it trained none."""
        return self.result.cost.get("repair", StageCost()).trained_parameters or 0

    def seconds(self, stage: str) -> float:
        """Seconds that all attempts together spent in a stage."""
        attempts = self.result.attempts
        return sum(cost.get(stage, StageCost()).seconds for cost in attempts)

    def peak_bytes(self, stage: str) -> float:
        """The highest peak of a stage over all attempts."""
        attempts = self.result.attempts
        return float(max(cost.get(stage, StageCost()).peak_bytes for cost in attempts))

    def member(self, group: str) -> str:
        """The member of a group; atp without slope is uniform."""
        section = self.config[group]
        if group == "sparsity_schedule" and section.get("common_difference") == 0:
            return "uniform"
        return member_name(str(section["_target_"]))

    @property
    def row(self) -> Row:
        """The row that the repaired state belongs to."""
        counts = self.result.sparsity
        return Row(
            float(self._counted_value(counts.target, "target")),
            str(counts.pattern),
            self.member("pruner"),
            self.member("sparsity_schedule"),
            self.member("method"),
            str(self.config.get("variant") or "-"),
        )

    @property
    def pruned_row(self) -> Row:
        row = self.row
        return Row(row.sparsity, row.pattern, row.pruner, row.schedule, "none", "-")

    def states(self) -> Iterator[tuple[Row, str]]:
        """(row, state) of everything this run measured, each state once.

        A method that prunes by itself has no pruned state.
        With pruner=existing the loaded model is not a dense one and belongs to no row.
        """
        if self.member("pruner") != "existing":
            yield DENSE, "dense"
        if self.member("pruner") != "none" and "pruned" in self.result.metrics:
            yield self.pruned_row, "pruned"
        if self.member("method") != "none":
            yield self.row, "repaired"

    def settings(self, state: str) -> dict[str, Any]:
        """The knobs, as dotted keys, that may tell runs of one row and state apart."""
        model = self.config["model"]
        loaded = {f"model.{key}": model[key] for key in CHECKPOINT if key in model}
        attention = self.result.protocol.attention
        if "model.attention" in loaded and attention is not None:
            loaded["model.attention"] = attention  # what null came to
        if state == "dense":
            return loaded
        dropped = NOT_SETTINGS | ({"method"} if state == "pruned" else set())
        if self.member("sparsity_schedule") == "uniform":
            dropped |= {"sparsity_schedule"}
        knobs = dict(leaves({k: v for k, v in self.config.items() if k not in dropped}))
        return {**loaded, **knobs}

    def value(self, state: str, metric: str) -> float | None:
        """A metric of one state; None where it is missing or was not finite."""
        return self.result.metric(state, metric)

    def protocol(self, metric: str) -> Protocol:
        """The protocol by which this run measures a metric."""
        facts = self.result.protocol
        if metric.startswith(f"{HARNESS}/"):
            return self._harness(metric)
        return Protocol(
            metric=metric,
            text=measured_text(self.config["data"]),
            split=facts.split,
            seqlen=facts.seqlen,
            dtype=facts.dtype,
            tokens=facts.tokens,
            statistics=facts.statistics,
            calibration=facts.calibration_from,
            bos=facts.bos,
            chat=facts.chat_template and metric != METRIC,  # its windows are plain text
        )

    def _harness(self, metric: str) -> Protocol:
        """The protocol of a harness metric: a task brings its text, the configuration its limits.

        A mean is over the tasks of a suite, or over those that were named.
        """
        facts, options = self.result.protocol, self.config["evaluation"][HARNESS]
        limit, described = options.get("limit"), facts.described.get(HARNESS, {})
        averaged = ", ".join(solved_examples(options.get("tasks") or [])) or options.get(
            "suite", HARNESS
        )
        return Protocol(
            metric=metric,
            text=HARNESS,
            split=averaged if metric.startswith(MEAN) else HARNESS,
            seqlen=int(options.get("max_length") or facts.seqlen),
            dtype=facts.dtype,
            tokens=0,
            statistics=facts.statistics,
            calibration=facts.calibration_from,
            items="all" if limit is None else str(limit),
            shots=shots_of(options, metric),
            score="" if metric.endswith(("/acc", "/acc_norm")) else str(options.get("metric", "")),
            bos=described.get("add_bos_token", options.get("add_bos_token")) is True,
            chat=described.get("chat_template") is True,
        )


def result_paths(folders: Sequence[Path]) -> list[Path]:
    """The results under the folders, in order; one that lies under two of them once."""
    paths = (path for folder in folders for path in sorted(folder.rglob(RESULT)))
    return list({path.resolve(): path for path in paths}.values())


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Every finished run under the folders, in order; raises where there is none."""
    runs, others = [], 0
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; give one that holds run folders")
    for path in result_paths(folders):
        result = load_result(path)
        if result.finished:
            runs.append(RunRecord(path.parent, result))
        else:
            others += 1
    if not runs:
        shown = ", ".join(map(str, folders))
        unfinished = f" ({others} unfinished)" if others else ""
        raise ValueError(
            f"no finished run under {shown}{unfinished}; run sparsemend first, or give the folder "
            "that holds its run folders, for example multirun"
        )
    return runs
