"""sparsemend as a library: prune, repair, measure, check and export a model that is in memory.

Settings have the names, defaults and checks of the yaml files in `conf/`: a keyword is a key of
run.yaml (`sparsity=0.6`), a group's member (`pruner="sparsegpt"`) or keys of a group
(`method={"rank": 8}`), and a string is an override as the command line takes it
(`"method.rank=8"`).  What the command line refuses is refused here, with a ValueError.  With equal
settings and windows the numbers are those of the command, to the bit.  Nothing is written unless
a folder is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.choice import choose_, choose_as_, dense_linears, report_choice
from sparsemend.blocks.find import check_blocks
from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import home_of, move_, residency_of, streams
from sparsemend.blocks.self_check import check_walk
from sparsemend.blocks.states import StatesPlace
from sparsemend.blocks.walk import Calibration
from sparsemend.checkpoint.packed import is_packed
from sparsemend.config.compose import compose_command
from sparsemend.config.prunable import PrunableNames
from sparsemend.config.streaming import evaluation_obstacle, method_obstacle, schedule_obstacle
from sparsemend.data.base import Examples
from sparsemend.errors import OverrideError
from sparsemend.evaluation.base import EvaluationInput
from sparsemend.hardware import Hardware
from sparsemend.layout.names import name_linears_
from sparsemend.layout.unfold import unfold_
from sparsemend.logger.base import csv_logger
from sparsemend.method.base import RepairMethod, Workbench
from sparsemend.model import ModelSource
from sparsemend.names import (
    ADAPTER,
    BLOCKS,
    CHECKPOINTS,
    HIDDEN_STATES,
    MASKS,
    PACKED_VALUES,
    PARTS,
)
from sparsemend.preflight.check import check_pattern, check_pruner, check_sizes
from sparsemend.preflight.declared import check_declared
from sparsemend.preflight.vocabulary import check_rounding, check_true_sequential
from sparsemend.pretrained.packed import load_packed_model as load_packed_model
from sparsemend.prune import check_widths
from sparsemend.pruner.base import Pruner
from sparsemend.run.adopt import adopt, check_existing
from sparsemend.run.caller_model import check_caller_model, check_kind
from sparsemend.run.export import export as write_model
from sparsemend.run.export import save_supports
from sparsemend.run.job import build
from sparsemend.run.model_type import with_bos
from sparsemend.run.prune import PruningRules
from sparsemend.run.save import as_saved, open_adapters, save_as_class_does_
from sparsemend.run.streamed import open_where_asked
from sparsemend.run.windows import Wanted, Windows, check_vocabulary, first_window
from sparsemend.run.windows import read_windows as read_data
from sparsemend.sparse.count import SparsityReport, sparsity_report
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.stays_dense import REACHED, stays_dense, warn_dense
from sparsemend.training.numerics import numerics_kept

Dense = PreTrainedModel | Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class PruneOutcome:
    """What `prune` did: the settings, the sparsity asked of every linear, the zeros counted.

    Linears are named by their modules, for `model.get_submodule`; messages name them as the
    checkpoint does.  stays_dense: the linears without a support, with the reason.
    """

    settings: tuple[str, ...]
    asked: Mapping[str, float]
    report: SparsityReport
    stays_dense: Mapping[str, str]


@dataclass(frozen=True)
class RepairOutcome:
    """What `repair` did: its method's diagnostics, the sparsity now asked, the zeros counted."""

    method: RepairMethod
    diagnostics: Mapping[str, Any]
    asked: Mapping[str, float]
    report: SparsityReport


def load(
    *overrides: str, folder: str | Path | None = None, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load the dense model of the group `model`, on the CPU, and its tokenizer if it has one.

    folder: a new folder for the changed blocks of a model whose blocks stay in files, as
    `hardware.stream` says; `auto` without a folder loads it whole, and `true` opens a model that
    can be measured, not changed.  Whatever is done with such a model brings in one block at a time.
    """
    cfg = compose(overrides, settings)
    source: ModelSource = build(cfg.model)
    model = _open_streamed(cfg, source, folder)
    if model is None:
        model = source.load(seed=cfg.seed)
    save_as_class_does_(model)
    return model, source.tokenizer()


def _open_streamed(
    cfg: DictConfig, source: ModelSource, folder: str | Path | None
) -> PreTrainedModel | None:
    blocks = None if folder is None else Path(folder) / BLOCKS
    if blocks is not None and blocks.exists() and any(blocks.iterdir()):
        raise ValueError(f"{folder} holds the blocks of another model; give a new folder")
    asked = cfg.hardware.get("stream", False)
    if asked == "auto" and blocks is None:
        return None
    return open_where_asked(asked, source, blocks, lambda: None)


def read_windows(
    tokenizer: PreTrainedTokenizerBase | None, *overrides: str, **settings: Any
) -> Windows:
    """Read token windows as the command does, from the group `data`.

    Returns calibration (N, T), train, validation, test and the task's windows.  Raises ValueError
    unless `data.seqlen` is given, the tokens per window (T).
    """
    lines = override_lines(overrides, settings)
    if not any(line.startswith("data.seqlen=") for line in lines):
        raise ValueError('give the tokens per window, for example data={"seqlen": 2048}')
    cfg = compose(lines, {})
    data = build(with_bos(cfg, tokenizer).data)
    wanted = Wanted(calibration=True, train=True, validation=True)
    return read_data(data, tokenizer, wanted, seed=cfg.seed)


def prune(
    model: PreTrainedModel,
    calibration: Tensor | None,
    *overrides: str,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    **settings: Any,
) -> PruneOutcome:
    """Prune the linears in the decoder blocks of `model`, in place.

    `export` writes it with its masks; its `save_pretrained` writes plain weights that load.

    calibration: token windows (N, T), None for a pruner and a schedule that read none.  include,
    exclude: patterns of linears, by saved or module names, the keys of `prunable` in run.yaml; None
    as it says there, all linears but routers.  settings: sparsity, pattern, rounding, statistics,
    true_sequential, seed and the groups pruner, sparsity_schedule, hardware.
    """
    check_caller_model(model)
    names = {"include": include, "exclude": exclude}
    patterns = {key: list(value) for key, value in names.items() if value is not None}
    lines = override_lines(overrides, {"prunable": patterns, **settings})
    cfg = compose(lines, {}, model)
    pattern = check_pattern(cfg)
    check_pruner(cfg, pattern)
    check_rounding(cfg, pattern)
    _open(model)
    check_true_sequential(cfg)
    _check_streams(model, schedule_obstacle, cfg.sparsity_schedule)
    _check_changeable(model)
    _choose(model, cfg)
    check_blocks(model)
    _check_folded(model)
    pruner: Pruner = build(cfg.pruner)
    schedule = build(cfg.sparsity_schedule)
    windows = _windows(model, calibration)
    if not windows and (pruner.needs_calibration or schedule.needs_calibration):
        raise ValueError(
            f"{type(pruner).__name__} with {type(schedule).__name__} needs calibration windows; "
            "give token ids (N, T), for example read_windows(...).calibration"
        )
    with _hardware(model, cfg) as (hardware, device):
        window = first_window(*windows, _any_window(model))
        check_walk(model, window, device=device, offload=hardware.offload)
        if pruner.reads_support:
            check_existing(model, None, pattern)
            residency_of(model).begin("prune")
            asked: Mapping[str, float] = adopt(model, None)
        else:
            check_widths(model, pattern, tail=cfg.pattern_tail)
            rules = PruningRules(
                pruner=pruner,
                schedule=schedule,
                sparsity=cfg.sparsity,
                pattern=pattern,
                rounding=cfg.rounding,
                statistics=cfg.statistics,
                true_sequential=cfg.true_sequential,
            )
            calibrated = _calibration(model, windows, hardware, device, None)
            begin = partial(residency_of(model).begin, "prune")
            asked = rules(model, calibrated, beginning=begin)
    dense = stays_dense(model, REACHED)
    warn_dense(model, dense)
    return PruneOutcome(tuple(lines), asked, sparsity_report(model), dense)


def repair(
    model: PreTrainedModel,
    *overrides: str,
    pruned: PruneOutcome | None = None,
    train: Examples | Tensor | None = None,
    validation: Examples | Tensor | None = None,
    calibration: Tensor | None = None,
    dense: Dense | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> RepairOutcome:
    """Repair a pruned model in place, by `method=...`, without losing a zero.

    pruned: what `prune` returned, whose settings go on; None for a model that came pruned, whose
    zeros are its support.  train, validation: windows (N, T) or labelled Examples, for methods that
    train.  calibration: windows (N, T), for methods that read them.  dense: the dense model, or a
    function that loads it, for methods that compare with it.  folder: a new folder, where
    checkpoints and curves are kept; None keeps nothing.  Raises ValueError on what cannot work; a
    repair that fails half-way leaves the model as it was then.
    """
    check_caller_model(model)
    lines = override_lines(overrides, settings)
    cfg = compose([*_kept_lines(pruned, lines), *lines], {}, model)
    check_true_sequential(cfg)
    method: RepairMethod = build(cfg.method)
    method_name, pattern = type(method).__name__, Pattern.parse(cfg.pattern)
    _open(model)
    check_blocks(model)
    _check_folded(model)
    if folder is not None and any((Path(folder) / name).exists() for name in (PARTS, CHECKPOINTS)):
        raise ValueError(f"{folder} holds the work of another repair; give a new folder")
    if method.trains and (train is None or validation is None):
        raise ValueError(f"{method_name} trains; give train and validation windows")
    if method.needs_calibration and calibration is None:
        raise ValueError(f"{method_name} reads calibration windows; give calibration")
    if method.needs_dense and dense is None:
        raise ValueError(f"{method_name} reads the dense weights; give dense")
    _check_streams(model, method_obstacle, cfg.method)
    _check_changeable(model)
    sparse = dict(sparse_linears(model))
    if sparse and any(line.startswith("prunable") for line in lines):
        raise ValueError("this model is pruned, so its linears are chosen; leave prunable out")
    with _hardware(model, cfg) as (hardware, device):
        windows = _windows(model, calibration)
        window = first_window(*windows, _any_window(model))
        check_walk(model, window, device=device, offload=hardware.offload)
        if pruned is None:
            if not sparse:
                _choose(model, cfg)
            check_existing(model, _Supports(sparse) if sparse else None, pattern)
            if not sparse:
                residency_of(model).begin("prune")
                adopt(model, None)
        report = sparsity_report(model)
        rates = {name: count.sparsity for name, count in report.per_linear.items()}
        with _folder(folder) as out:
            bench = Workbench(
                calibration=_calibration(model, windows, hardware, device, folder),
                train=_examples(model, train, "train"),
                validation=_examples(model, validation, "validation"),
                pruner=build(cfg.pruner),
                allocation=pruned.asked if pruned else rates,
                sparsity=cfg.sparsity if pruned else report.of_prunable,
                pattern=pattern,
                load_dense=_dense(dense, method_name, model),
                make_trainer=hardware.trainer_factory([csv_logger(out)] if folder else [], out),
                device=device,
                out=out,
                seed=cfg.seed,
                rounding=cfg.rounding,
                true_sequential=cfg.true_sequential,
                micro_batch=hardware.micro_batch,
                activation_checkpointing=hardware.activation_checkpointing,
            )
            if method.trains:
                method.check_train(bench.train)
            method.check_model(model, None)
            residency_of(model).begin("repair")
            diagnostics = method.repair(model, bench)
            check_supports(model)
    asked = diagnostics.pop("asked") if method.reallocates else bench.allocation
    return RepairOutcome(method, diagnostics, asked, sparsity_report(model))


def evaluate(
    model: PreTrainedModel,
    windows: Windows,
    *overrides: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dense: Dense | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Measure a model by `evaluation=...`; returns named numbers, `perplexity/test` among them.

    windows: what `read_windows` returned.  tokenizer: for tasks in text.  dense: for evaluations
    that compare with the dense model.
    """
    check_kind(getattr(model, "_orig_mod", model))  # a compiled model is measured as it is
    cfg = compose(overrides, settings, model)
    _check_streams(model, evaluation_obstacle, cfg.evaluation)
    metrics: dict[str, float] = {}
    size = model.config.get_text_config().vocab_size
    labelled = [windows.validation, *([windows.task] if windows.task else [])]
    for tokens in (windows.test, *(examples.tokens for examples in labelled)):
        check_vocabulary(tokens, size)
    with _hardware(model, cfg) as (hardware, device), _folder(folder) as out:
        inputs = EvaluationInput(
            test=windows.test,
            task=windows.task,
            validation=windows.validation,
            tokenizer=tokenizer,
            device=device,
            batch_size=hardware.evaluation_batch,
            load_dense=_dense(dense, "this evaluation", model),
            out=out,
            state="repaired",
            states=_states(model, hardware, folder),
            states_bytes=hardware.evaluation_states,
        )
        move_(model, device)
        for section in cfg.evaluation.values():
            metrics |= build(section)(model, replace(inputs, window_losses={}))
    return metrics


def check(model: PreTrainedModel) -> SparsityReport:
    """Count the zeros of every prunable linear, exactly.

    Raises ValueError, naming the linear, where a weight that was pruned is not zero.
    """
    try:
        check_supports(model)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return sparsity_report(model)


def export(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    repaired: RepairOutcome | None = None,
    packed: str | None = None,
) -> Path:
    """Write a model as plain dense safetensors with its zeros, and its packed supports.

    The folder is written whole or not at all and loads in transformers; `model` stays as it is.
    packed: `float32`, `bfloat16` or `int8`, to write the sparse linears packed instead, with values
    of that dtype, for `load_packed_model` and sparsemend-generate.
    repaired: needed where the method leaves an adapter beside the weights, which is then written
    to `folder`/adapter.  Raises ValueError on such a model without it.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and _may_replace(folder)):
        raise ValueError(f"{folder} is there and no export of a sparse model; give a new folder")
    check_kind(model)
    check_supports(model)
    if packed not in (None, *PACKED_VALUES):
        raise ValueError(f"packed={packed} is not one of: {', '.join(PACKED_VALUES)}")
    if packed is not None and (names := open_adapters(model)):
        raise ValueError(
            f"{names[0]} carries an adapter that is not folded into its weight, which a packed "
            "linear has no place for; leave packed out"
        )
    if repaired is None and (names := open_adapters(model)):
        raise ValueError(
            f"{names[0]} carries an adapter that is not folded into its weight; give repaired, "
            "what repair() returned, to export weights and adapter"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        masks = Path(temporary) / MASKS
        save_supports(model, masks)
        if repaired is not None:
            repaired.method.save_adapter(model, Path(temporary) / ADAPTER, base=str(folder))
        with nullcontext() if streams(model) or packed else as_saved(model):
            write_model(model, tokenizer, folder, masks=masks, card=None, values=packed)
        if (adapter := Path(temporary) / ADAPTER).exists():
            adapter.replace(folder / ADAPTER)
    return folder


def compose(
    overrides: tuple[str, ...] | list[str],
    settings: Mapping[str, Any],
    model: PreTrainedModel | None = None,
) -> DictConfig:
    """The config of some settings; raises ValueError on a name that does not exist.

    model: decides the hardware that is not set: the device it lies on.
    """
    lines = override_lines(overrides, settings)
    if model is not None and not any(line.startswith("hardware=") for line in lines):
        on_gpu = home_of(model).type == "cuda"
        lines = ["hardware=gpu", "hardware.offload=false", *lines] if on_gpu else lines
    try:
        (cfg,) = compose_command(lines).configs
    except OverrideError as error:
        raise ValueError("; ".join(str(error).splitlines())) from error
    for key in ("resume", "from_run", "debug"):
        if cfg.get(key) is not None:
            raise ValueError(f"{key} is for runs of the command; leave it out")
    check_declared(cfg)
    check_sizes(cfg)
    if cfg.hardware.get("devices", 1) != 1:
        raise ValueError("several devices train in runs of the command; leave hardware.devices out")
    return cfg


def _kept_lines(pruned: PruneOutcome | None, lines: list[str]) -> list[str]:
    """The settings of a pruning that later ones do not choose anew."""
    chosen = {line.partition("=")[0] for line in lines if "." not in line.partition("=")[0]}
    kept = pruned.settings if pruned else ()
    return [line for line in kept if line.partition("=")[0].partition(".")[0] not in chosen]


def _open(model: PreTrainedModel) -> None:
    """Make every linear of `model` an nn.Linear with both its names; it still saves as its class.

    In place.
    """
    unfold_(model)
    name_linears_(model)
    save_as_class_does_(model)


def _choose(model: PreTrainedModel, cfg: DictConfig) -> None:
    """Mark the linears that stay dense; ValueError where a pruned model was chosen otherwise."""
    prunable = PrunableNames.of(cfg)
    sparse = [name for name, _ in sparse_linears(model)]
    for name in sparse:
        saved = saved_name(model, name)
        if not prunable.allow(name, saved):
            raise ValueError(
                f"{saved} is pruned already and cannot stay dense; load the model anew"
            )
    for name in dense_linears(model) if sparse else ():
        saved = saved_name(model, name)
        if prunable.allow(name, saved):
            raise ValueError(
                f"{saved} stayed dense when this model was pruned; load the model anew to prune it"
            )
    choose_(model, prunable)
    report_choice(model, prunable)


def _may_replace(folder: Path) -> bool:
    return (folder / MASKS).is_file() or is_packed(folder) or not any(folder.iterdir())


def _check_streams(
    model: PreTrainedModel, obstacle: Callable[[DictConfig], str | None], section: DictConfig
) -> None:
    """Raise ValueError where blocks lie in files and a section needs them all in memory."""
    if streams(model) and (reason := obstacle(section)) is not None:
        raise ValueError(f"{reason}; load it whole, with hardware.stream=false")


def _check_changeable(model: PreTrainedModel) -> None:
    """Raise ValueError where the blocks of a streamed model would have no place when changed."""
    if streams(model) and residency_of(model).place is None:
        raise ValueError(
            "the blocks of this model lie in its checkpoint, which stays as it is; give "
            "load(..., folder=...), where changed blocks may lie"
        )


class _Supports(Mapping[str, Tensor]):
    """The supports, bool (O, I), of a model's linears by name, each unpacked as it is asked for."""

    def __init__(self, sparse: Mapping[str, SparseLinear]) -> None:
        self.sparse = sparse

    def __getitem__(self, name: str) -> Tensor:
        return self.sparse[name].keep

    def __contains__(self, name: object) -> bool:
        return name in self.sparse

    def __iter__(self) -> Iterator[str]:
        return iter(self.sparse)

    def __len__(self) -> int:
        return len(self.sparse)


def _calibration(
    model: PreTrainedModel,
    windows: tuple[Tensor, ...],
    hardware: Hardware,
    device: torch.device,
    folder: str | Path | None,
) -> Calibration:
    """The calibration windows as the hardware says.  folder: for states, besides the model's."""
    states = _states(model, hardware, folder)
    return Calibration(windows, device=device, offload=hardware.offload, states=states)


def _states(model: PreTrainedModel, hardware: Hardware, folder: str | Path | None) -> StatesPlace:
    """Where hidden states lie: in files only where a folder was named."""
    blocks = residency_of(model).place
    named = blocks.parent if blocks is not None else folder
    return StatesPlace(hardware.states, None if named is None else Path(named) / HIDDEN_STATES)


def _check_folded(model: PreTrainedModel) -> None:
    """Raise ValueError where a linear carries an adapter, which a further step would lose."""
    for name, linear in sparse_linears(model):
        if type(linear) is not SparseLinear:
            raise ValueError(
                f"{saved_name(model, name)} carries an earlier repair's adapter; export it, or "
                "load the model anew"
            )


def override_lines(
    overrides: tuple[str, ...] | list[str], settings: Mapping[str, Any]
) -> list[str]:
    """Overrides as the command line takes them, those of keywords last."""
    return [*overrides, *_lines("", settings)]


def _lines(prefix: str, settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _lines(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False, default=str)}"


@contextmanager
def _hardware(model: PreTrainedModel, cfg: DictConfig) -> Iterator[tuple[Hardware, torch.device]]:
    """The hardware and its device, for a model in eval mode whose own cache is off.

    Products are in full precision.  Afterwards the model is where and as it was.
    """
    hardware: Hardware = build(cfg.hardware)
    # some classes have no such setting
    cached = vars(model.config).get("use_cache", True)
    threads, training = torch.get_num_threads(), model.training
    home = home_of(model)
    with numerics_kept():
        try:
            torch.set_float32_matmul_precision("highest")
            device = hardware.prepare()
            model.config.use_cache = False
            model.eval()
            if not hardware.offload:
                move_(model, device)
            yield hardware, device
        finally:
            model.train(training)
            move_(model, home)
            model.config.use_cache = cached
            torch.set_num_threads(threads)


@contextmanager
def _folder(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="sparsemend-") as temporary:
        yield Path(temporary)


def _windows(model: PreTrainedModel, tokens: Tensor | None) -> tuple[Tensor, ...]:
    if tokens is None:
        return ()
    _check_windows(tokens, "calibration")
    check_vocabulary(tokens, model.config.get_text_config().vocab_size)
    return (tokens,)


def _any_window(model: PreTrainedModel) -> Tensor:
    """A window (1, T) of token ids for a check that needs some, whatever they say."""
    return torch.arange(min(8, model.config.get_text_config().vocab_size)).unsqueeze(0)


def _examples(model: PreTrainedModel, windows: Examples | Tensor | None, what: str) -> Examples:
    if windows is None:
        return Examples.of(torch.empty(0, 1, dtype=torch.int64))
    examples = windows if isinstance(windows, Examples) else Examples.of(windows)
    _check_windows(examples.tokens, what)
    check_vocabulary(examples.tokens, model.config.get_text_config().vocab_size)
    return examples


def _check_windows(tokens: Any, what: str) -> None:
    whole = isinstance(tokens, Tensor) and not tokens.is_floating_point()
    if not whole or tokens.ndim != 2 or not tokens.shape[0] or tokens.shape[1] < 2:
        shape = (
            f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens)
        )
        raise ValueError(
            f"{what} is {shape}; give token ids, an integer tensor (N, T) of at least one window "
            "of two tokens"
        )


def _dense(
    dense: Dense | None, reader: str, model: PreTrainedModel
) -> Callable[[], PreTrainedModel]:
    """What loads the dense model that `reader` compares with `model`, with the same choice."""

    def load() -> PreTrainedModel:
        if dense is None:
            raise ValueError(f"{reader} reads the dense model; give dense")
        loaded = dense if isinstance(dense, PreTrainedModel) else dense()
        unfold_(loaded)
        choose_as_(loaded, model)
        return loaded

    return load
