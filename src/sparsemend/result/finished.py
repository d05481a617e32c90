"""`from_run=FOLDER`: which run is measured and exported again, and under which config (no torch).

A run keeps its weights in `model/`, and in `adapter/` where the method does not fold; masks and
checkpoints are not weights, since pruners and methods move what stays.  So the run must have been
exported.  Its config stays in force; the command line may choose what is measured, on which
text, on which hardware, and how the result is exported.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.export import packed_values, stored_dtype
from sparsemend.config.keys import keys_that
from sparsemend.config.locations import EMBEDDED, PACKAGED, is_local
from sparsemend.config.renamed import check_stored
from sparsemend.config.values import override_key
from sparsemend.names import ADAPTER, MASKS, MODEL, RESULT, SPEED, STATES
from sparsemend.result.folder import load_result
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import MeasuredRun, costs_to_json

FREE = keys_that("free_with_from_run")
ALWAYS = keys_that("always_from_command_line")
# keys that name what a run reads
READ = ("from_run", "model.path", "pruner.masks", "sparsity_schedule.path")
MODEL_PATH = "model.path"  # of a dense model that has moved since the run


@dataclass(frozen=True)
class FinishedRun:
    """A run folder whose weights can be read again."""

    folder: Path
    result: RunResult

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def adapter(self) -> Path | None:
        """Factors that belong beside the weights, None where the method folded them."""
        return path if (path := self.folder / ADAPTER).is_dir() else None

    @property
    def dtype(self) -> str:
        """The dtype of the exported weights."""
        return stored_dtype(self.result.config)

    @property
    def packed(self) -> bool:
        """Whether the exported weights are packed."""
        return packed_values(self.result.config) is not None

    @property
    def supports(self) -> Path:
        """The file of the supports that belong to the exported weights."""
        return (self.folder if self.packed else self.model) / MASKS

    @property
    def command(self) -> str | None:
        """The command line that made the run, None where Hydra did not write it down."""
        overrides, hydra = (self.folder / ".hydra" / f"{n}.yaml" for n in ("overrides", "hydra"))
        if not overrides.is_file() or not hydra.is_file():
            return None
        lines: list[str] = OmegaConf.to_container(OmegaConf.load(overrides))  # type: ignore[assignment]
        return command_line(lines, OmegaConf.load(hydra).hydra.runtime.config_sources)

    def asked_sparsity(self) -> dict[str, float]:
        """Sparsity that was asked of every linear."""
        return {name: rates.asked for name, rates in self.result.sparsity.per_linear.items()}

    def carry_over(self, content: dict[str, Any]) -> None:
        """Add to a result what the finished run measured and this one did not.

        That is repair and the cost of pruning and repairing; metrics only where both runs measured
        on the very same tokens in the same dtype, and never in place of what was measured now.
        """
        before = self.result
        origin = MeasuredRun(str(self.folder), before.config_hash, before.provenance.commit)
        carried = self._comparable(RunResult.from_json(content))
        content["from_run"] = origin.to_json()
        content["repair"] = before.repair.to_json()
        content["cost"] = {**costs_to_json(before.cost), **content["cost"]}
        measured = {*before.metrics, *content["metrics"]}
        for state in (state for state in STATES if state in measured):
            earlier = before.metrics.get(state, {})
            earlier = {m: value for m, value in earlier.items() if m.partition("/")[0] in carried}
            content["metrics"][state] = {**earlier, **content["metrics"].get(state, {})}
        described = before.protocol.described
        described = {name: described[name] for name in sorted(carried) if name in described}
        content["protocol"] = {**described, **content["protocol"]}

    def _comparable(self, now: RunResult) -> set[str]:
        """The evaluations whose metrics may stand in a row with what `now` measured.

        An evaluation carried out again must have the same settings, speed the same machine too.
        """
        before = self.result
        if before.protocol.text != now.protocol.text:
            return set()
        asked, again = (result.config.get("evaluation") or {} for result in (before, now))
        same_machine = before.provenance.machine == now.provenance.machine
        measured = {m.partition("/")[0] for s in before.metrics.values() for m in s}
        return {
            name
            for name in measured
            if name not in again
            or (asked.get(name) == again[name] and (name != SPEED or same_machine))
        }


def command_line(overrides: Sequence[str], sources: Iterable[Any]) -> str:
    """The command line that makes a run anew, without the `resume=` that continued another one.

    sources: Hydra's `runtime.config_sources`; folders of the user's own are among them.
    """
    folders = [source.path for source in sources if source.provider.endswith("command-line")]
    first = ["--config-dir", folders[0]] if folders else []
    rest = folders[1:]
    more = [f"hydra.searchpath={json.dumps(rest, ensure_ascii=False)}"] if rest else []
    kept = [line for line in overrides if override_key(line) not in ("resume", "hydra.searchpath")]
    return shlex.join(["sparsemend", *first, *more, *kept])


def finished_run(asked: str) -> FinishedRun:
    """The run in a folder; raises FileNotFoundError or ValueError unless it can be read again."""
    folder = Path(asked).expanduser()
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"from_run={asked}: no {RESULT} in it; give a run folder")
    result = load_result(folder / RESULT)
    if not result.finished:
        raise ValueError(
            f"from_run={asked}: that run is {result.status}, not finished; continue it with "
            f"resume={asked} first"
        )
    if result.config.get("debug"):
        raise ValueError(
            f"from_run={asked}: that was a debug run, on a part of the model; run it without debug="
        )
    check_stored(result.config, folder)
    run = FinishedRun(folder, result)
    if packed_values(result.config) == "int8":
        raise ValueError(
            f"from_run={asked}: its weights were rounded to int8 when they were packed, and are "
            "not those that it measured; run it again with export_form=dense"
        )
    if not run.supports.is_file() or not run.model.is_dir():
        command = run.command or "its command"
        raise FileNotFoundError(
            f"from_run={asked}: it has no model/, and masks or checkpoints are not weights; run it "
            f"again with export=true: {command} export=true"
        )
    return run


def resolve_from_run(cfg: DictConfig) -> DictConfig:
    """`cfg` itself, or with from_run the finished run's config and what the command line chose.

    Raises ValueError on an override that would change the run that is only measured.
    """
    if cfg.get("from_run") is None:
        return cfg
    if cfg.resume is not None:
        raise ValueError(
            f"from_run={cfg.from_run} and resume={cfg.resume}: a finished run has nothing left to "
            "continue; drop one of them"
        )
    run = finished_run(cfg.from_run)
    overrides = _job_overrides()
    _check_free(overrides)
    chosen = {*ALWAYS, *(_root(line) for line in overrides if _chooses(line))}
    # unresolved: data.seqlen follows the context length of the run's model, not of the default one
    merged: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    stored = run.result.config
    merged |= {key: value for key, value in stored.items() if key in merged and key not in chosen}
    if "path" in merged["model"]:  # of a run before the key was there
        merged["model"].setdefault("trust_remote_code", False)
    merged["model"]["dtype"] = run.dtype  # dense and repaired are compared in that of the export
    config = OmegaConf.create(merged)
    keys = [override_key(line) for line in overrides]
    _check_moved(cfg.from_run, config.model.get("path"), again=MODEL_PATH in keys)
    for key in keys:
        if "." in key and key.partition(".")[0] not in chosen:  # a knob of what the run had
            OmegaConf.update(config, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    return config


def _check_moved(asked: str, path: str | None, *, again: bool) -> None:
    """Raise an error where the run's dense model is not there any more, or never was in a folder.

    again: whether the command line says where it is now.
    """
    if again and path is None:
        raise ValueError(
            f"from_run={asked}: the model of that run is made of numbers, not read from a folder; "
            f"leave {MODEL_PATH} out"
        )
    if again or path is None or path.startswith((EMBEDDED, PACKAGED)) or not is_local(path):
        return
    if not Path(path).exists():
        raise FileNotFoundError(
            f"from_run={asked}: the model of that run has moved, {path} does not exist; give "
            f"{MODEL_PATH}=NEW beside from_run, the place where it is now"
        )


def check_apart(cfg: DictConfig, out: Path) -> None:
    """Raise ValueError where a run would be written over what it reads."""
    for key in READ:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser().resolve()
        if path.exists() and path.is_relative_to(out.resolve()):
            raise ValueError(
                f"{key}={value} is, or lies in, hydra.run.dir, which this run writes; give the new "
                "result another folder"
            )


def _job_overrides() -> list[str]:
    """The overrides of this job; none before Hydra has started it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _chooses(line: str) -> bool:
    """Whether an override chooses a member of a group, or takes a part of it away."""
    return "@" in override_key(line) or "." not in override_key(line) or line.startswith("~")


def _root(line: str) -> str:
    """`evaluation` of `+evaluation.speed.rounds=3`, `data` of `data@data.text=text`."""
    return override_key(line).partition("@")[0].partition(".")[0]


def _check_free(overrides: list[str]) -> None:
    allowed = (*FREE, "from_run", "hydra")
    fixed = [x for x in overrides if _root(x) not in allowed and override_key(x) != MODEL_PATH]
    if fixed:
        raise ValueError(
            f"{fixed[0]} is not for a run that is measured again, which keeps what it was made "
            f"with; beside from_run set only {', '.join(FREE)}, {MODEL_PATH} of a model that has "
            "moved, or repeat the run by its command"
        )
