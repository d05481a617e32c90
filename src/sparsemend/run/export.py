"""The export of a run: plain dense safetensors that any Hugging Face code loads, or packed ones.

Dense: no sparse format and no `sparsity_config`, since engines that dropped sparsity refuse both,
and the zeros are in the weights anyway; the packed supports lie beside them.  Packed
(export_form=packed): the supports are in the weights, which this package alone multiplies by.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.residency import residency_of, streams, visit_blocks
from sparsemend.checkpoint.card import model_card
from sparsemend.config.export import packed_values
from sparsemend.files import replacing_folder
from sparsemend.layout.saved import saved_masks
from sparsemend.layout.unfold import fold_
from sparsemend.model import DTYPES
from sparsemend.names import ADAPTER, MASKS, MODEL
from sparsemend.result.finished import command_line, finished_run
from sparsemend.run.job import Loaded, RunJob
from sparsemend.run.packed import save_packed_model
from sparsemend.run.streamed import save_streamed
from sparsemend.sparse.count import effective_sparsity, sparsity_report, sparsity_section
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.mask_file import write_masks


def export_stage(job: RunJob, loaded: Loaded, asked: Mapping[str, float]) -> None:
    """Write masks, adapter and, where it was asked for, the model; record the sparsity.

    asked: sparsity of every linear.  The model turns dense where it is exported so.
    """
    with job.stages.measure("export"):
        _export(job, loaded.model, loaded.tokenizer, asked)


def _export(
    job: RunJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    asked: Mapping[str, float],
) -> None:
    cfg, content = job.cfg, job.result.content
    masks, exported = job.out / MASKS, job.out / MODEL
    base = str(exported if cfg.export else cfg.model.get("path"))
    job.parts.method.save_adapter(model, job.out / ADAPTER, base=base)
    if cfg.export and cfg.export_dtype is not None:
        cast_(model, DTYPES[cfg.export_dtype])  # first: its zeros are counted
    save_supports(model, masks)
    report = sparsity_report(model)
    content["sparsity"] |= sparsity_section(
        model,
        report,
        asked,
        target=report.of_prunable if job.parts.pruner.reads_support else cfg.sparsity,
        pattern=str(job.pattern),
        # linears of a streamed model hold their support, so this is the same number, read already
        effective=report.of_prunable if streams(model) else effective_sparsity(model),
    )
    if cfg.export:
        card = model_card(content, _command(cfg.from_run))
        companions = job.parts.model.companions()
        values = packed_values(cfg)
        if not streams(model) and values is None:
            to_dense_(model)
        export(
            model,
            tokenizer,
            exported,
            masks=masks,
            card=card,
            companions=companions,
            values=values,
        )


def _command(from_run: str | None) -> str:
    """The command line that made the model: this job's own, in a sweep too, or a finished run's."""
    if from_run is not None and (command := finished_run(from_run).command) is not None:
        return command
    hydra = HydraConfig.get()
    return command_line(hydra.overrides.task, hydra.runtime.config_sources)


def save_supports(model: PreTrainedModel, path: Path) -> None:
    """Write the supports of a model under the names that its tensors have when it is saved."""
    write_masks(saved_masks(model), path)


def to_dense_(model: PreTrainedModel) -> PreTrainedModel:
    """Turn every SparseLinear back into nn.Linear, zeros in place, in place."""
    for name, sparse in list(sparse_linears(model)):
        model.set_submodule(name, _dense(sparse))
    return model


@torch.no_grad()
def _dense(sparse: SparseLinear) -> nn.Linear:
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    # an adapter that stays open is saved beside, not merged
    weight = sparse.effective_weight() if sparse.holds_support else sparse.weight
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = sparse.bias
    return linear


@contextmanager
def caching(model: PreTrainedModel) -> Iterator[None]:
    """Let the config say `use_cache` while the block runs, as who generates from a file wants it.

    It is off only while this package calibrates and trains.
    """
    before = vars(model.config).get("use_cache", True)  # some classes have no such setting
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = before


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    masks: Path,
    card: str | None,
    companions: Sequence[Path] = (),
    values: str | None = None,
) -> None:
    """Write `folder` whole or not at all: weights, config, tokenizer, supports, model card.

    companions: files to copy beside them.  values: the dtype in which sparse linears are packed on
    their supports, which then lie in no file of their own; None: weights are dense.
    A model whose weights are to be dense, and which holds no SparseLinear any more, is folded into
    the layout of its class; one that is packed or whose blocks lie in files stays as it is.
    """
    with replacing_folder(folder) as partial:
        with caching(model):
            if values is not None:
                save_packed_model(model, partial, values=values)
            elif streams(model):
                save_streamed(model, partial)
            else:
                fold_(model)
                model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for file in companions:
            shutil.copyfile(file, partial / file.name)
        if masks.exists() and values is None:
            place_beside(masks, partial / masks.name)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


def place_beside(masks: Path, copy: Path) -> None:
    """Make `copy` the very file `masks`, or a copy of it where the file system has no hard links.

    Both stay whole when the other is removed, and every writer of masks replaces its file.
    """
    try:
        os.link(masks, copy)
    except OSError:
        shutil.copyfile(masks, copy)


@torch.no_grad()
def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn every weight into another dtype; ValueError names one that is too large for it."""
    if streams(model):
        for _, name, block in visit_blocks(model):
            _check_cast(block, dtype, f"{name}.")
        residency_of(model).read_in(dtype)
    _check_cast(model, dtype)
    nn.Module.to(model, dtype)


def _check_cast(module: nn.Module, dtype: torch.dtype, prefix: str = "") -> None:
    """Raise ValueError where a weight, of those that are in memory, is too large for a dtype."""
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        rounded = parameter.to(dtype)
        if not rounded.isfinite().all() and parameter.isfinite().all():
            raise ValueError(
                f"export_dtype={str(dtype).removeprefix('torch.')} cannot hold {prefix}{name}, "
                f"whose largest weight is {float(parameter.abs().max()):g}; export in another dtype"
            )
