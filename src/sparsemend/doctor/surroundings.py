"""What a run needs besides memory: settings that work, files, programs, drivers (no torch)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsemend.checkpoint.headers import weight_files
from sparsemend.checkpoint.tokenizer import has_tokenizer
from sparsemend.config.locations import is_local, resolve_path
from sparsemend.doctor.driver import driver
from sparsemend.doctor.verdict import Finding, Verdict
from sparsemend.errors import USER_ERRORS
from sparsemend.preflight import check as preflight
from sparsemend.preflight.data import data_sources
from sparsemend.preflight.device import check_device
from sparsemend.preflight.place import check_place, nearest_existing

COMPILERS = ("cc", "gcc", "clang")
GO, NO_GO, UNKNOWN = Verdict.GO, Verdict.NO_GO, Verdict.UNKNOWN
# prints how a library initialises CUDA while what a rank imports is imported
IMPORTS = """
import torch
def lazy_init():
    raise SystemExit("CUDA is initialised")
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda._lazy_init = lazy_init
import sparsemend.training.ranks, sparsemend.training.module
"""


class NoShape(Exception):
    """Says that no file on this machine tells the shape of the model."""


def examine_surroundings(cfg: DictConfig, folder: Path, *, pretended: bool) -> list[Finding]:
    """Every finding; folder: of the run; pretended: the run is for another machine's GPU."""
    findings = [settings(cfg, folder, pretended=pretended), *model_files(cfg), *data_places(cfg)]
    findings += [*compiler(cfg), *launcher(), *harness(cfg), *speed(cfg), *ranks(cfg)]
    findings += [resumable(folder)]
    if not pretended:
        findings += [*driver(cfg)]
    return findings


def settings(cfg: DictConfig, folder: Path, *, pretended: bool) -> Finding:
    """What the command itself would refuse before it starts."""
    try:
        check_place(folder)
        if not pretended:
            check_device(cfg)
        preflight.check(_without_weights(cfg))
    except (*USER_ERRORS, OmegaConfBaseException) as error:
        return Finding("settings", NO_GO, str(error))
    return Finding("settings", GO, "the command accepts them")


def shapes_are_there(cfg: DictConfig) -> None:
    """Raise NoShape unless the model's config.json lies here, in a folder or the hub's cache."""
    if cfg.get("from_run") is not None:
        raise NoShape(
            "the memory of measuring a finished run again is not estimated; that of its own "
            "evaluation is cost.evaluate.peak_bytes of its result.json"
        )
    path = str(cfg.model.get("path", ""))
    if "architecture" in cfg.model or (Path(resolve_path(path)) / "config.json").is_file():
        return
    if is_local(path):
        raise NoShape(f"model.path={path} has no config.json, so its shape is not known")
    if not _is_cached(path, "config.json", cfg.model.get("revision")):
        raise NoShape(
            f"the config of {path} is not in the hub's cache of this machine, so its shape is not "
            "known; give model.path a folder with its config.json, no weights are needed"
        )


def _is_cached(path: str, name: str, revision: str | None) -> bool:
    """Whether a file of the hub, of that revision, lies in its cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, name, revision=revision), str)


def model_files(cfg: DictConfig) -> Iterator[Finding]:
    """Weights and tokenizer, where a folder is named."""
    folder = Path(resolve_path(str(cfg.model.get("path", ""))))
    if "architecture" in cfg.model or not cfg.model.get("path"):
        return
    if not folder.is_dir():
        yield _on_the_hub(str(cfg.model.path), cfg.model.get("revision"))
        return
    there = has_weights(folder)
    says = "has its weights" if there else "has its config alone; the weights are to come"
    yield Finding("weights", GO, f"{folder} {says}")
    if not has_tokenizer(folder):
        yield Finding("tokenizer", GO, f"{folder} has none, which serves data in tokens alone")


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights of any kind."""
    try:
        return bool(weight_files(folder)) or any(folder.glob("*.bin"))
    except FileNotFoundError:
        return False


def _on_the_hub(path: str, revision: str | None) -> Finding:
    """Whether a model of the hub is in its cache, or may be downloaded."""
    names = ("model.safetensors", "model.safetensors.index.json")
    if any(_is_cached(path, name, revision) for name in names):
        return Finding("weights", GO, f"{path} is in the hub's cache")
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true", "True", "ON", "YES"):
        return Finding("weights", NO_GO, f"{path} is not here, and HF_HUB_OFFLINE is set")
    token = os.environ.get("HF_TOKEN") or _token_file().is_file()
    says = (
        "a token of the hub is set" if token else "no token of the hub is set, gated ones need it"
    )
    return Finding("weights", UNKNOWN, f"{path} is to be downloaded; {says}")


def _token_file() -> Path:
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    return Path(home) / "token"


def data_places(cfg: DictConfig) -> Iterator[Finding]:
    """Whether every file or folder that a data source names is here."""
    for key, source in data_sources(cfg):
        for name in ("path", "train", "calibration", "validation", "test"):
            value = source.get(name)
            if isinstance(value, str) and value and is_local(value):
                there = Path(value).expanduser().exists()
                says = f"{key}.{name}={value} is {'here' if there else 'missing'}"
                yield Finding("data", GO if there else NO_GO, says)
            elif name == "path" and isinstance(value, str) and value:
                yield Finding("data", UNKNOWN, f"{key}.path={value} comes from the hub")


def compiler(cfg: DictConfig) -> Iterator[Finding]:
    """A C compiler, where the model is compiled."""
    if not cfg.method.get("compile"):
        return
    names = [os.environ.get("CC"), *COMPILERS]
    program = next((name for name in names if name and shutil.which(name)), None)
    if program is None:
        yield Finding(
            "compiler",
            NO_GO,
            "method.compile=true builds kernels, and there is no C compiler",
            "install gcc or set method.compile=false",
        )
    else:
        yield Finding("compiler", GO, f"{program} builds the kernels of method.compile=true")


def launcher() -> Iterator[Finding]:
    """The packages of launchers that are not installed are of interest to sweeps alone."""
    packages = {"submitit": "hydra_plugins.hydra_submitit_launcher", "ray": "ray"}
    missing = [name for name, module in packages.items() if not _has_module(module)]
    if missing:
        yield Finding(
            "launchers", GO, f"not installed: {', '.join(missing)}; a single run has none"
        )


def harness(cfg: DictConfig) -> Iterator[Finding]:
    """The package that zero-shot tasks come from."""
    if "zero_shot" not in (cfg.get("evaluation") or {}):
        return
    if not _has_module("lm_eval"):
        yield Finding("tasks", NO_GO, "evaluation=zero_shot needs lm-eval", "pip install lm-eval")
        return
    says = f"lm-eval {metadata.version('lm_eval')} is here; what memory tasks take, and whether "
    yield Finding("tasks", UNKNOWN, f"{says}their data are here, is not examined")


def speed(cfg: DictConfig) -> Iterator[Finding]:
    """What a measurement that is left out would need is not known."""
    if "speed" in (cfg.get("evaluation") or {}):
        yield Finding("speed", UNKNOWN, "the memory of evaluation=speed is not estimated")


def ranks(cfg: DictConfig) -> Iterator[Finding]:
    """That what a rank imports leaves CUDA alone: several processes share the first GPU else."""
    if int(cfg.hardware.get("devices", 1)) < 2:
        return
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=300, check=False
    )
    if "CUDA is initialised" in done.stderr:
        yield Finding(
            "ranks",
            NO_GO,
            "importing what a rank imports initialises CUDA",
            "remove the library that does so, as bitsandbytes beside peft did",
        )
    else:
        yield Finding("ranks", GO, "what a rank imports leaves CUDA alone")


def resumable(folder: Path) -> Finding:
    """Whether resume=auto on another node would find the run of this folder."""
    kind = file_system(nearest_existing(folder).resolve())
    if kind in NETWORK:
        return Finding("resume", GO, f"{folder} lies on {kind}, which other nodes may see too")
    return Finding(
        "resume",
        GO,
        f"{folder} lies on {kind or 'a disk'} of {platform.node()}: resume=auto goes on there, on "
        "another node only where it sees this folder",
    )


NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.glusterfs", "cifs", "wekafs")


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of the file system that a folder lies on; None where nothing tells."""
    if not mounts.is_file():
        return None
    best, kind = "", None
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, place, system, *_ = line.split()
        if folder.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, system
    return kind


def _without_weights(cfg: DictConfig) -> DictConfig:
    """`cfg` whose model is passed over where its folder has a config and no weights."""
    path = str(cfg.model.get("path", ""))
    folder = Path(resolve_path(path))
    if not (folder / "config.json").is_file() or has_weights(folder):
        return cfg
    changed = cfg.copy()
    OmegaConf.update(changed, "model.path", "to/come")
    return changed


def _has_module(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
