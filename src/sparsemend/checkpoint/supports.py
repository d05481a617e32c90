"""Read the supports of a whole checkpoint: any folder of safetensors, one file or shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from os import cpu_count
from pathlib import Path
from time import perf_counter

from sparsemend.checkpoint.bits import SIZES, Support, pattern_of, support_of
from sparsemend.checkpoint.headers import (
    TensorHeader,
    json_object,
    read_checkpoint_headers,
    read_headers,
)
from sparsemend.checkpoint.linears import BLOCK_TENSOR
from sparsemend.checkpoint.masks import Masks, read_masks
from sparsemend.checkpoint.pruned_tensors import (
    PrunedTensors,
    tensor_of,
    tensors_by_masks,
    tensors_by_names,
)
from sparsemend.config.kinds import kinds
from sparsemend.names import MASKS, MODEL, RESULT
from sparsemend.sparse.pattern import Pattern

NAMED = 3  # tensors of a line
THREADS = 8  # with more threads, the disk is the limit


@dataclass(frozen=True)
class Checked:
    """A checkpoint as read: the support of every prunable tensor, by name.

    prunable: how each lies in its file, and what stays dense; tensors: full name by that without
    a final `.weight`.
    """

    path: Path
    masks: Path | None
    prunable: PrunedTensors
    tensors: Mapping[str, str]
    supports: Mapping[str, Support]
    all_weights: int
    seconds: float

    @property
    def zeros(self) -> int:
        return sum(support.zeros for support in self.supports.values())

    @property
    def weights(self) -> int:
        return sum(support.weights for support in self.supports.values())

    @property
    def dense_weights(self) -> int:
        """The number of weights in the linears that stay dense on purpose."""
        return sum(stored.weights for stored in self.prunable.stays_dense.values())

    @property
    def excluded(self) -> tuple[str, ...]:
        """The linears that stay dense, and what no run prunes: routers."""
        return (*self.prunable.stays_dense, *self.prunable.left_out)

    @property
    def pattern(self) -> Pattern:
        return pattern_of(list(self.supports.values()))

    def blocks(self) -> dict[str, list[Support]]:
        """Supports by decoder block, in the order of their numbers."""
        by_block: dict[str, list[Support]] = {}
        for name, support in self.supports.items():
            by_block.setdefault(_block(name), []).append(support)
        return by_block

    def failures(self, asked: Pattern | None) -> list[str]:
        """A line per kind of violation: weights off the masks, or against pattern `asked`.

        A line names the first tensors and says how many there are.
        """
        escaped = {name: s.escaped for name, s in self.supports.items() if s.escaped}
        lines = [
            f"{self._names(escaped)}: {sum(escaped.values()):,} weights off the mask are not zero"
        ]
        if not asked:
            return lines if escaped else []
        size = asked.group_size
        full = {n: s.most[size] for n, s in self.supports.items() if s.most[size] > asked.kept}
        lines.append(
            f"{self._names(full)}: {max(full.values(), default=0)} of {size} consecutive inputs "
            f"are not zero, more than pattern {asked} allows"
        )
        return [line for line, names in zip(lines, (escaped, full), strict=True) if names]

    def remarks(self) -> list[str]:
        """A line per kind of tensor that no pattern is asked of, with names and weights."""
        lines = []
        if dense := self.prunable.stays_dense:
            share = self.zeros / (self.weights + self.dense_weights)
            lines.append(
                f"{len(dense)} linears stay dense, as the masks file says: {self._kinds(dense)}; "
                f"{self.dense_weights:,} weights, with which the sparsity is {share:.6f}"
            )
        if kept := {name: s.dense for name, s in self.supports.items() if s.dense}:
            whole = f"{sum(kept.values()):,} weights are kept whole by their masks"
            lines.append(f"{whole}, in {self._kinds(kept)}")
        if others := self.prunable.left_out:
            why = "they have no mask" if self.masks else "routers are not pruned"
            lines.append(f"{len(others)} left out, {why}: {self._kinds(others)}")
        return lines

    def _kinds(self, names: Iterable[str]) -> str:
        return ", ".join(kinds(names, self.tensors))

    def _names(self, linears: Iterable[str]) -> str:
        """Tensors by name, at most NAMED of them, and of how many."""
        names = [self.tensors[name] for name in linears]
        rest = len(names) - NAMED
        if rest <= 0:
            return ", ".join(names)
        return f"{', '.join(names[:NAMED])} and {rest} more ({len(names)} of {len(self.tensors)})"


def read_checkpoint(path: Path, masks: Path | None, asked: Pattern | None) -> Checked:
    """Read the supports of all prunable weights, each weight once.

    Raises FileNotFoundError or ValueError, with a remedy, where there is nothing to read or the
    masks belong to other weights.
    """
    started = perf_counter()
    headers = _headers(path)
    folder = path if path.is_dir() else path.parent
    masks = masks or (folder / MASKS if (folder / MASKS).is_file() else None)
    written = _those_of(path, headers, read_masks(masks)) if masks else Masks({}, None)
    prunable = _prunable(path, {n: h for n, (_, h) in headers.items()}, folder, masks, written)
    sizes = tuple(sorted({*SIZES, asked.group_size})) if asked else SIZES

    def read(name: str) -> Support:
        stored = prunable.linears[name]
        return support_of(
            *headers[tensor_of(name, headers)],
            written.by_name.get(name),
            sizes,
            inputs_last=stored.inputs_last,
            partly_dense=stored.stack > 1 or name in (written.stays_dense or ()),
        )

    with ThreadPoolExecutor(min(THREADS, cpu_count() or 1)) as threads:  # numpy runs freely
        supports = dict(zip(prunable.linears, threads.map(read, prunable.linears), strict=True))
    named = (*prunable.linears, *prunable.stays_dense, *prunable.left_out)
    tensors = {name: tensor_of(name, headers) for name in named}
    total = sum(prod(header.shape) for _, header in headers.values())
    return Checked(path, masks, prunable, tensors, supports, total, perf_counter() - started)


def holds_zeros(folder: Path) -> bool:
    """Whether any prunable weight of a folder of safetensors without masks is zero.

    Reads up to the first tensor that holds one: of a pruned model one tensor, of a dense one all.
    """
    headers = read_checkpoint_headers(folder)
    only_headers = {name: header for name, (_, header) in headers.items()}
    prunable = _prunable(folder, only_headers, folder, None, Masks({}, None))
    return any(
        support_of(*headers[tensor_of(name, headers)], None, (), inputs_last=each.inputs_last).zeros
        for name, each in prunable.linears.items()
    )


def _prunable(
    path: Path,
    headers: Mapping[str, TensorHeader],
    folder: Path,
    masks: Path | None,
    written: Masks,
) -> PrunedTensors:
    config = folder / "config.json"
    values = json_object(config) if config.is_file() else None
    if masks is None:
        return tensors_by_names(path, headers, values)
    return tensors_by_masks(path, headers, values, masks, written)


def _those_of(path: Path, headers: Mapping[str, object], masks: Masks) -> Masks:
    """The masks of the tensors of one file: it may be one shard of several; all of a folder."""
    if path.is_dir():
        return masks
    by_name = {n: mask for n, mask in masks.by_name.items() if tensor_of(n, headers) in headers}
    return Masks(by_name, masks.stays_dense)


def _headers(path: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Tensor name -> (file, header) of a folder or of one file."""
    if path.is_file():
        return read_headers([path])
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a folder with safetensors, or a file")
    exported = path / MODEL
    if (path / RESULT).is_file():
        remedy = (
            f"give {exported}"
            if exported.is_dir()
            else "it was not exported: repeat it with export=true and give its model/"
        )
        raise FileNotFoundError(f"{path} is a run folder, not a checkpoint; {remedy}")
    headers = read_checkpoint_headers(path)
    if not headers:
        raise FileNotFoundError(
            f"{path} has pickled weights only; save the model again with save_pretrained, which "
            "writes safetensors"
        )
    return headers


def _block(linear: str) -> str:
    match = BLOCK_TENSOR.fullmatch(linear)
    return linear.removesuffix(match["rest"]).rstrip(".") if match else linear
