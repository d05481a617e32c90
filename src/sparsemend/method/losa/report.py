"""Reports of LoSA's rounds by block: records for result.json and lines for the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparsemend.blocks.find import block_index, find_blocks
from sparsemend.method.losa.linear import LosaLinear
from sparsemend.method.losa.progress import losa_linears
from sparsemend.sparse.count import LinearCount
from sparsemend.sparse.packing import unpack

log = logging.getLogger(__name__)


def by_block(model: nn.Module) -> list[dict[str, LosaLinear]]:
    """The LosaLinears of every block, by full name."""
    prefix, blocks = find_blocks(model)
    grouped: list[dict[str, LosaLinear]] = [{} for _ in blocks]
    for name, linear in losa_linears(model).items():
        grouped[block_index(name, prefix)][name] = linear
    return grouped


def block_zeros(model: nn.Module) -> list[float]:
    """Fraction of every block's weights that is off the support."""
    return [off_support(linears).sparsity for linears in by_block(model)]


def off_support(linears: Mapping[str, LosaLinear]) -> LinearCount:
    """Count the weights off the support; a kept weight does not count even if exactly 0."""
    keeps = [linear.keep for linear in linears.values()]
    return sum(
        (LinearCount(k.numel() - int(k.count_nonzero()), k.numel()) for k in keeps),
        LinearCount(0, 0),
    )


def block_records(
    model: nn.Module,
    before: Mapping[str, Tensor],
    rates: Sequence[float],
    ranks: Sequence[int],
    errors: Sequence[float],
) -> list[dict[str, Any]]:
    """A record per block of what was asked and reached.

    before: packed supports of the round before.
    """
    records = []
    for index, linears in enumerate(by_block(model)):
        both = either = dropped = regrown = 0
        for name, linear in linears.items():
            old, new = unpack(before[name], linear.in_features), linear.keep
            both += int((old & new).count_nonzero())
            either += int((old | new).count_nonzero())
            dropped += int((old & ~new).count_nonzero())
            regrown += int((new & ~old).count_nonzero())
        records.append(
            {
                "rate": rates[index],
                "achieved": off_support(linears).sparsity,
                "rank": ranks[index],
                "active_rank": max((linear.rank for linear in linears.values()), default=0),
                "error_pruned": errors[index],
                "error_trained": None,
                "mask_overlap": both / either if either else 1.0,
                "dropped": dropped,
                "regrown": regrown,
            }
        )
    return records


def mask_update(record: Mapping[str, Any]) -> dict[str, float]:
    """The weights that a round dropped and grew again, over all blocks."""
    blocks = record["blocks"]
    return {
        "dropped": sum(block["dropped"] for block in blocks),
        "grown": sum(block["regrown"] for block in blocks),
    }


def report_pruned(record: Mapping[str, Any], rounds: int) -> None:
    """Log a line per block of a round that has been pruned, and one for the round."""
    head = f"round {record['round']}/{rounds}"
    count = len(record["blocks"])
    for number, block in enumerate(record["blocks"], start=1):
        log.info(
            "%s  block %d/%d  rate %.4f  sparsity %.6f  rank %d%s  error %.4g  overlap %.4f  "
            "regrown %d",
            head,
            number,
            count,
            block["rate"],
            block["achieved"],
            block["rank"],
            f" ({active} in use)" if (active := block["active_rank"]) < block["rank"] else "",
            block["error_pruned"],
            block["mask_overlap"],
            block["regrown"],
        )
    seconds = record["seconds"]
    log.info(
        "%s  pruned  target %.6f  sparsity %.6f  rates %.1f s  pruning %.1f s",
        head,
        record["target"],
        record["achieved"],
        seconds["allocate"],
        seconds["prune"],
    )


def report_trained(record: Mapping[str, Any], rounds: int) -> None:
    """Log a line for a round that has been trained."""
    errors = [(block["error_pruned"], block["error_trained"]) for block in record["blocks"]]
    moved = "  ".join(f"{a:.3g}->{b:.3g}" for a, b in errors if b is not None)
    log.info(
        "round %d/%d  trained  %d steps  %.1f s%s",
        record["round"],
        rounds,
        record["steps"],
        record["seconds"]["train"],
        f"  errors {moved}" if moved else "",
    )


def totals(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals of all rounds; overhead: time of allocating and pruning as a share of training."""
    seconds = {
        what: sum(record["seconds"][what] for record in records)
        for what in ("allocate", "prune", "train", "measure")
    }
    overhead = seconds["allocate"] + seconds["prune"]
    # a round whose steps an earlier attempt took has no time of them
    timed = [record for record in records if record["seconds"]["step"] is not None]
    steps = sum(record["steps"] for record in timed)
    of_steps = sum(record["seconds"]["step"] * record["steps"] for record in timed)
    return {
        "steps": sum(record["steps"] for record in records),
        "step_seconds": of_steps / steps if steps else None,
        "tokens": sum(record["tokens"] for record in records),
        "seconds": seconds,
        "overhead": overhead / seconds["train"] if seconds["train"] else None,
    }
