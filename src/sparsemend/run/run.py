"""One run, top to bottom: load, measure, prune, measure, repair, measure, export, report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sparsemend.config.values import plain
from sparsemend.errors import blame_disk
from sparsemend.files import forget_partials
from sparsemend.names import BLOCKS, HIDDEN_STATES, MODEL, RESULT
from sparsemend.result.finished import check_apart, resolve_from_run
from sparsemend.result.record import Result, objective
from sparsemend.result.resume import cell_folder, forget_work, run_folder
from sparsemend.run.again import measure_again
from sparsemend.run.evaluate import evaluate
from sparsemend.run.export import export_stage
from sparsemend.run.job import RunJob, prepare
from sparsemend.run.load import load
from sparsemend.run.prune import leave_whole, prune_stage
from sparsemend.run.push import open_repository, push
from sparsemend.run.quiet import quieten
from sparsemend.run.repair import evaluate_repaired, repair_stage
from sparsemend.run.table import summary_table
from sparsemend.terminal import RUN_WIDTH, console

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float:
    """Carry out one configured run; returns its objective, the repaired model's perplexity."""
    quieten()
    cfg = resolve_from_run(cfg)
    started, worked = perf_counter(), process_time()
    result = open_result(cfg)
    try:
        carry_out(prepare(cfg, result, result.path.parent))
        result.content["seconds"] = round(perf_counter() - started, 3)
        result.content["processor_seconds"] = round(process_time() - worked, 3)
        result.write()
    except BaseException as error:
        result.fail(error)
        raise
    return objective(result.record, plain(cfg))


def open_result(cfg: DictConfig) -> Result:
    """Choose the run folder, a fresh or a resumed one, and begin its result."""
    fresh, config = Path(HydraConfig.get().runtime.output_dir), plain(cfg)
    check_apart(cfg, fresh)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    out, resumed = cell_folder(config, fresh) if sweep else run_folder(cfg.resume, config, fresh)
    forget_partials(out)
    if not resumed:
        forget_work(out)
    if out.resolve() != fresh.resolve():
        move_log(fresh, out)
    result = Result(out / RESULT, cfg, resumed=resumed)
    result.write()
    return result


def move_log(fresh: Path, out: Path) -> None:
    """Go on with the log in `out`, and remove the folder that Hydra made for a run of its own."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == fresh:
            handler.close()  # it opens again with its next line
            lines = Path(handler.baseFilename)
            handler.baseFilename = str(out / lines.name)
            if lines.exists():
                with (out / lines.name).open("a", encoding="utf-8") as log_file:
                    log_file.write(lines.read_text(encoding="utf-8"))
                lines.unlink()
    shutil.rmtree(fresh / ".hydra", ignore_errors=True)
    for folder in (fresh, fresh.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def carry_out(job: RunJob) -> None:
    """Run every stage in order; what was measured is on disk even when a stage fails."""
    try:
        with blame_disk(str(job.out)):
            with pushing(job):
                stages(job)
            finish(job)
    except BaseException as error:
        job.result.fail(error, job.stages)
        job.parts.logger.abandon(job.loggers, job.result.content)
        raise


@contextmanager
def pushing(job: RunJob) -> Iterator[None]:
    """Upload what the body exports, if that is asked for; what bars it shows before the body."""
    repository = job.cfg.export_push
    if repository is None:
        yield
        return
    open_repository(repository, private=job.cfg.export_private)
    yield
    log.info("uploaded: %s", push(job.out / MODEL, repository))


def stages(job: RunJob) -> None:
    """Go from a dense model to a repaired one, or measure that of a finished run again."""
    if job.cfg.from_run is not None:
        measure_again(job)
        return
    loaded = load(job)
    evaluate(job, "dense", loaded)
    if job.parts.method.reads_pruned:
        asked = prune_stage(job, loaded)
        evaluate(job, "pruned", loaded)
    else:
        asked = leave_whole(job, loaded)
    asked = repair_stage(job, loaded, asked)
    evaluate_repaired(job, loaded)
    export_stage(job, loaded, asked)


def finish(job: RunJob) -> None:
    """Write the finished result, bring the trackers to their end, print the table."""
    content = job.result.content
    content["status"] = "finished"
    job.result.costs(job.stages)
    job.reuse.forget_attempts()
    for folder in (BLOCKS, HIDDEN_STATES):
        shutil.rmtree(job.out / folder, ignore_errors=True)
    try:
        job.parts.logger.finish(job.loggers, content)
    except Exception:  # result.json is the truth, and it is written
        log.exception("the tracker could not be brought to its end")
    console(RUN_WIDTH).print(summary_table(content))
    console(RUN_WIDTH).print(f"result: {job.result.path}", soft_wrap=True)
