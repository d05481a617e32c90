"""Read the supports of a whole checkpoint: any folder of safetensors, one file or shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from os import cpu_count
from pathlib import Path
from time import perf_counter

from sparsemend.checkpoint.bits import SIZES, Bits, Support, pattern_of, read_masks, support_of
from sparsemend.checkpoint.headers import (
    BLOCK_TENSOR,
    TensorHeader,
    block_tensors,
    has_experts,
    linear_shapes,
    read_header,
    weight_files,
)
from sparsemend.config.prunable import PrunableNames, defaults
from sparsemend.names import MASKS, MODEL, RESULT
from sparsemend.sparse.pattern import Pattern

NAMED = 3  # tensors of a line
THREADS = 8  # with more threads, the disk is the limit


@dataclass(frozen=True)
class Checked:
    """A checkpoint as read: the support of every prunable linear, by name.

    excluded: the linears beside them that stay dense: routers, and those without a mask in a file
    of masks.
    """

    path: Path
    masks: Path | None
    supports: Mapping[str, Support]
    all_weights: int
    seconds: float
    excluded: tuple[str, ...] = ()

    @property
    def zeros(self) -> int:
        return sum(support.zeros for support in self.supports.values())

    @property
    def weights(self) -> int:
        return sum(support.weights for support in self.supports.values())

    @property
    def pattern(self) -> Pattern:
        return pattern_of(list(self.supports.values()))

    def blocks(self) -> dict[str, list[Support]]:
        """Supports by decoder block, in the order of their numbers."""
        by_block: dict[str, list[Support]] = {}
        for name, support in self.supports.items():
            by_block.setdefault(_block(name), []).append(support)
        return dict(sorted(by_block.items(), key=lambda item: _number(item[0])))

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

    def _names(self, linears: Iterable[str]) -> str:
        """The weights of linears by name, at most NAMED of them, and of how many linears."""
        names = [f"{name}.weight" for name in linears]
        rest = len(names) - NAMED
        if rest <= 0:
            return ", ".join(names)
        return f"{', '.join(names[:NAMED])} and {rest} more ({len(names)} of {len(self.supports)})"


def read_checkpoint(path: Path, masks: Path | None, asked: Pattern | None) -> Checked:
    """Read the supports of all prunable weights, each weight once.

    Raises FileNotFoundError or ValueError, with a remedy, where there is nothing to read or the
    masks belong to other weights.
    """
    started = perf_counter()
    files = _files(path)
    headers = {name: (f, header) for f in files for name, header in read_header(f).items()}
    every = _linears(path, {name: header for name, (_, header) in headers.items()})
    linears = PrunableNames(include=None, exclude=defaults()).without_dense(every) or every
    beside = (path if path.is_dir() else path.parent) / MASKS
    masks = masks or (beside if beside.is_file() else None)
    packed_masks = read_masks(masks) if masks else {}
    if path.is_file():  # it may be one shard of several, and the masks those of all
        packed_masks = {name: packed for name, packed in packed_masks.items() if name in every}
    if masks:
        _check_masks(masks, {name: shape for name, (shape, _) in packed_masks.items()}, every)
        linears = {name: shape for name, shape in every.items() if name in packed_masks}
    sizes = tuple(sorted({*SIZES, asked.group_size})) if asked else SIZES

    def read(name: str) -> Support:
        mask: Bits | None = packed_masks[name][1] if masks else None
        return support_of(*headers[f"{name}.weight"], mask, sizes)

    with ThreadPoolExecutor(min(THREADS, cpu_count() or 1)) as threads:  # numpy runs freely
        supports = dict(zip(linears, threads.map(read, linears), strict=True))
    total = sum(prod(header.shape) for _, header in headers.values())
    excluded = tuple(name for name in every if name not in linears)
    return Checked(path, masks, supports, total, perf_counter() - started, excluded)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
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
    files = weight_files(path)
    if not files:
        raise FileNotFoundError(
            f"{path} has pickled weights only; save the model again with save_pretrained, which "
            "writes safetensors"
        )
    return files


def _linears(path: Path, headers: Mapping[str, TensorHeader]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the linears inside decoder blocks, in the order of the blocks."""
    blocks = block_tensors({name: header.shape for name, header in headers.items()})
    if has_experts(blocks):
        raise ValueError(f"{path} is a mixture of experts, which this package does not prune")
    linears = linear_shapes(blocks)
    if not linears:
        raise ValueError(
            f"{path} has no linear inside decoder blocks (`prefix.NUMBER.name.weight` of two "
            "dimensions); give the folder or file with a causal LM's weights"
        )
    return dict(sorted(linears.items(), key=lambda item: (_number(_block(item[0])), item[0])))


def _check_masks(
    masks: Path, shapes: Mapping[str, tuple[int, ...]], linears: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ValueError on a mask that fits no linear; a linear without one was left dense."""
    odd = sorted(name for name in shapes if shapes[name] != linears.get(name))
    if not shapes:
        raise ValueError(f"{masks} has no mask of a linear in these weights; name it with --masks")
    if odd:
        raise ValueError(
            f"{masks} is not of these weights: {odd[0]} has {shapes[odd[0]]} there and "
            f"{linears.get(odd[0], 'no weight')} in the checkpoint ({len(odd)} linears differ); "
            "name the right file with --masks"
        )


def _block(linear: str) -> str:
    match = BLOCK_TENSOR.fullmatch(linear)
    return linear.removesuffix(match["rest"]).rstrip(".") if match else linear


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])
