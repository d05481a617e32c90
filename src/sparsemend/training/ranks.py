"""Data parallel on one machine: rank 0 is the run itself, the other ranks exist only for the fit.

When the fit begins rank 0 starts the others and sends each the module that is trained, without
the values of its parameters and buffers; those follow through the process group.  Lightning's own
launcher would repeat the command in every process instead: each would load, measure and prune,
and the children of a sweep's first job would repeat the whole sweep.  Ranks on GPUs are fresh
processes: a fork cannot use CUDA where its parent has, and to import a library may be enough.

A failure anywhere ends all ranks: a rank ends itself when rank 0 is gone, and rank 0 raises the
report of a lost rank, or ends after GRACE seconds if it waits for that rank inside a collective.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from sparsemend.training.checkpoint_file import CheckpointFile
from sparsemend.training.numerics import set_numerics, with_half
from sparsemend.training.without_values import without_values

if TYPE_CHECKING:
    from sparsemend.training.module import RepairModule

GRACE = 30.0  # seconds a rank has to leave by itself
# NCCL's own ten minutes may be less than rank 0 takes to write a checkpoint to a file server; that
# a rank is lost is seen at once by its process
PATIENCE = timedelta(hours=2)
HOST = "127.0.0.1"
READY = ""  # the report of a rank that has its module


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of one fit: their accelerator and number, and the torch threads of each."""

    accelerator: str
    world: int
    threads: int
    deterministic: bool
    out: Path

    @property
    def on_gpu(self) -> bool:
        return self.accelerator == "gpu"

    def settings(self, rank: int) -> dict[str, Any]:
        """Trainer arguments of process `rank` besides the settings of the fit."""
        return {
            "accelerator": self.accelerator,
            "devices": self.world,
            # buffers hold the packed supports: sent once, not before every forward; gradients exist
            # once, in what is sent
            "strategy": DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
            "plugins": [Place(rank), CheckpointFile()],
            "use_distributed_sampler": False,  # batches are shared out by rank already
            "default_root_dir": self.out,
            "enable_model_summary": False,
        }


class Place(LightningEnvironment):
    """Tells Lightning which rank this process is, to start no others, and to requeue no job."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class LeadingTrainer(Trainer):
    """Rank 0's Trainer: `fit` starts the other ranks and returns when they have left."""

    def __init__(self, team: Team, *, callbacks: list[Callback], **settings: Any) -> None:
        settings = with_half(team.accelerator, {**settings, **team.settings(rank=0)})
        super().__init__(callbacks=[*callbacks, StopAtOnce()], **settings)
        self.team = team

    def fit(  # type: ignore[override]
        self,
        model: RepairModule,
        *,
        ckpt_path: Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        with with_threads(self.team.threads), start_followers(self.team, model, ckpt_path):
            super().fit(model, ckpt_path=ckpt_path, weights_only=weights_only)


class StopAtOnce(Callback):
    """SIGTERM ends rank 0, and with it all: Lightning's handler would wait in a collective."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside; Lightning does not change that number."""
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del os.environ["OMP_NUM_THREADS"]
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable


@dataclass(frozen=True)
class Follower:
    """A process of rank > 0 as rank 0 sees it; it reports READY, and its traceback if it fails."""

    rank: int
    process: BaseProcess
    reports: connection.Connection

    def report(self, *, seconds: float | None) -> str | None:
        """The process's next report, or None if none comes within `seconds` (None: no limit).

        The report of a process that ended without one tells its exit code.
        """
        try:
            return str(self.reports.recv()) if self.reports.poll(seconds) else None
        except EOFError:
            self.process.join(1)
            return f"ended without a word, exit code {self.process.exitcode}"


@contextmanager
def start_followers(team: Team, module: RepairModule, checkpoint: Path | None) -> Iterator[None]:
    """Let ranks 1 ... world - 1 fit `module` too; inside, this process is rank 0 of their group.

    If another rank fails first, raises RuntimeError with that rank's report.
    """
    store = distributed.TCPStore(HOST, 0, team.world, is_master=True, wait_for_workers=False)
    followers = start(team, module, store.port, checkpoint)
    over = threading.Event()
    try:
        for follower in followers:
            if (report := follower.report(seconds=None)) != READY:
                raise RuntimeError(f"rank {follower.rank} did not start: {report}")
        threading.Thread(target=end_with_any, args=(followers, over), daemon=True).start()
        with join_group(team, 0, store):
            try:
                yield
                distributed.barrier()
            except RuntimeError as error:
                blame(followers, error)
                raise
            over.set()
        for follower in followers:
            follower.process.join(GRACE)
    finally:
        over.set()
        for follower in followers:
            follower.process.kill()
            follower.process.join()
            follower.reports.close()


def start(team: Team, module: RepairModule, port: int, checkpoint: Path | None) -> list[Follower]:
    """Start ranks 1 ... world - 1: on GPUs afresh, else forked off a server with all imports.

    A fork of this very process, with its threads and perhaps CUDA, could deadlock.
    """
    context = start_context(team)
    if not team.on_gpu:
        context.set_forkserver_preload(
            ["sparsemend.training.module", type(module.model).__module__]
        )
    sent = without_values(module)
    followers = []
    for rank in range(1, team.world):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(
            target=follow, args=(team, rank, port, sent, checkpoint, sending), daemon=True
        )
        process.start()
        sending.close()  # the process alone holds that end, so that its death is seen at this one
        followers.append(Follower(rank, process, receiving))
    return followers


def start_context(team: Team) -> Any:
    """How the ranks of this team are started."""
    return multiprocessing.get_context("spawn" if team.on_gpu else "forkserver")


def blame(followers: Sequence[Follower], error: RuntimeError) -> None:
    """Raise RuntimeError from `error`, perhaps of a collective, if another rank failed first.

    The group must still be alive: until this rank leaves it, the others report only their own
    errors.
    """
    for follower in followers:
        report = follower.report(seconds=1.0)
        if report and str(error) not in report:  # otherwise all ranks met the same error
            raise RuntimeError(f"rank {follower.rank} failed: {report}") from error


def end_with_any(followers: Sequence[Follower], over: threading.Event) -> None:
    """End this process if another ends and the fit is not over GRACE seconds later."""
    ended = connection.wait([follower.process.sentinel for follower in followers])
    if over.wait(GRACE):
        return
    for follower in followers:
        if follower.process.sentinel in ended:
            report = follower.report(seconds=0.0)
            print(f"error: rank {follower.rank} failed: {report}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits in a collective that will not end


@contextmanager
def join_group(team: Team, rank: int, store: distributed.Store) -> Iterator[None]:
    """Make this process `rank` of the default process group while inside."""
    if team.on_gpu:
        torch.cuda.set_device(rank)
    hook = sys.excepthook  # init_process_group replaces it by one that marks every line
    distributed.init_process_group(
        "nccl" if team.on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=team.world,
        timeout=PATIENCE,
        device_id=torch.device("cuda", rank) if team.on_gpu else None,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
        sys.excepthook = hook


def follow(
    team: Team,
    rank: int,
    port: int,
    sent: bytes,
    checkpoint: Path | None,
    reports: connection.Connection,
) -> None:
    """Run a process of rank > 0: fit the module that rank 0 sent, without log lines, and return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal interrupts all; rank 0 decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)  # rank 0 logs for all
    warnings.simplefilter("ignore")
    try:
        set_numerics(gpu=team.on_gpu, deterministic=team.deterministic)
        module: RepairModule = pickle.loads(sent)
        reports.send(READY)
        store = distributed.TCPStore(HOST, port, team.world, is_master=False)
        with with_threads(team.threads), join_group(team, rank, store):
            module.fit(following(team, rank), out=team.out, resume_from=checkpoint)
            distributed.barrier()  # rank 0 takes the end of a process before this for a failure
    except BaseException:
        reports.send(traceback.format_exc())
        os._exit(1)  # cleaning up might wait for the other ranks


def following(team: Team, rank: int) -> Any:
    """The trainer factory of process `rank`."""

    def make(**settings: Any) -> Trainer:
        settings = with_half(team.accelerator, {**settings, **team.settings(rank)})
        return Trainer(logger=False, enable_progress_bar=False, **settings)

    return make


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
