"""`sparsemend-tables collect`: tables of result folders as files of five formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sparsemend.errors import OverrideError, nearest
from sparsemend.files import replacing, write_text
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.table.formats import comma_separated, latex, markdown
from sparsemend.table.paper_table import PaperTable, tables
from sparsemend.table.protocols import check_metric, with_metric


def collect(
    folders: Sequence[Path], metric: str, where: Sequence[str], out: Path | None
) -> list[Path]:
    """Print every table as Markdown and write tables.{md,tex,csv} and a picture of each.

    where: `key=value` conditions on runs.  out: the folder of the files, the first of `folders`
    if None.  Returns the paths written; raises what `find_runs` and `tables` raise.
    """
    runs = find_runs(folders)
    check_metric(runs, metric)
    runs = with_metric(runs, metric)  # the other runs have no protocol of this metric
    paper_tables = tables(select_runs(runs, where, metric), metric)
    target = out or folders[0]
    for table in paper_tables:
        print(markdown(table))
    return _write(paper_tables, target)


def select_runs(runs: Sequence[RunRecord], where: Sequence[str], metric: str) -> list[RunRecord]:
    """The runs that meet every condition.

    Raises OverrideError on an unknown key, ValueError where no run is left.
    """
    for condition in where:
        key, _, value = condition.partition("=")
        matches = [run for run in runs if _facts(run, metric).get(_check_key(key)) == value]
        if not matches:
            values = sorted({_facts(run, metric)[key] for run in runs})
            raise ValueError(f"no run has {condition}; {key} is one of {', '.join(values)}")
        runs = matches
    return list(runs)


def _check_key(key: str) -> str:
    keys = [*(f.name for f in fields(Protocol)), "name", "model", "seed", "pruner", "method"]
    if key not in keys:
        near = nearest(key, keys, most=2)
        raise OverrideError(f"unknown key {key!r} in --where\n{near}all: {', '.join(keys)}")
    return key


def _facts(run: RunRecord, metric: str) -> dict[str, str]:
    protocol = run.protocol(metric)
    facts = {field.name: str(getattr(protocol, field.name)) for field in fields(Protocol)}
    facts |= {"name": run.name, "model": run.model, "seed": str(run.seed)}
    return facts | {group: run.member(group) for group in ("pruner", "method")}


def _write(paper_tables: Sequence[PaperTable], target: Path) -> list[Path]:
    from sparsemend.table.plot import draw

    texts = {
        "tables.md": "\n".join(map(markdown, paper_tables)),
        "tables.tex": "\n".join(map(latex, paper_tables)),
        "tables.csv": comma_separated(paper_tables),
    }
    for name, text in texts.items():
        write_text(target / name, text)
    paths = [target / name for name in texts]
    for table in paper_tables:
        stem = table.title.replace("/", "_")
        for suffix in (".png", ".svg"):
            path = target / f"{stem}{suffix}"
            with replacing(path) as partial:
                draw(table, partial, suffix)
            paths.append(path)
    return paths
