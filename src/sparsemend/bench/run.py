"""One bench, top to bottom: build the suite, measure section by section, report each at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig

from sparsemend.bench.report import Report, table
from sparsemend.bench.suite.base import Setting, Suite
from sparsemend.errors import blame
from sparsemend.model import DTYPES
from sparsemend.run.quiet import quieten
from sparsemend.terminal import RUN_WIDTH, console


def run(cfg: DictConfig, search: list[str]) -> None:
    """Carry out one configured bench in its run folder."""
    quieten()
    for name in ("sparsemend.prune", "sparsemend.method"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per block, of every round
    setting = _setting(cfg, search)
    suite = _build(cfg.suite)
    assert isinstance(suite, Suite)
    report = Report(cfg, setting)
    shown = console(RUN_WIDTH)
    shown.print(report.heading, soft_wrap=True)
    try:
        for section in suite.sections(setting):
            report.add(section)
            shown.print(table(section))
    except BaseException:
        report.write("failed")
        raise
    report.write("finished")
    shown.print(f"result: {setting.out / 'bench.md'} and bench.json", soft_wrap=True)


def _setting(cfg: DictConfig, search: list[str]) -> Setting:
    device = torch.device(cfg.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={cfg.device} but torch sees no CUDA device; use device=cpu, or install a CUDA "
            "build of torch"
        )
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    return Setting(
        shape=_build(cfg.shape),
        sparsity=cfg.sparsity,
        dtype=DTYPES[cfg.dtype],
        device=device,
        rounds=cfg.rounds,
        seed=cfg.seed,
        out=Path(HydraConfig.get().runtime.output_dir),
        search=search,
    )


def _build(section: DictConfig) -> Any:
    key = section._get_full_key(None)
    with blame(key, f"compare the keys of {key} with the constructor that its _target_ names"):
        return instantiate(
            section, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
        )
