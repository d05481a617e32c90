"""`sparsemend-tables report`: result folders as one self-contained HTML page.

Runs of two protocols lie in two sections, each with its own table and charts.
The page needs no network and no library: style sheet and charts are inside.  It is light or dark as
the reader's system is, or as its button says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from sparsemend.config.locations import PACKAGE
from sparsemend.files import write_text
from sparsemend.names import METRIC
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.table.page import figures as sections
from sparsemend.table.page.groups import groups
from sparsemend.table.page.summary import summary
from sparsemend.table.protocols import by_protocol, check_metric, protocols

SCRIPT = """
const root = document.documentElement, set = t => root.dataset.theme = t;
if (["#dark", "#light"].includes(location.hash)) set(location.hash.slice(1));
document.querySelector("button").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  set(dark ? "light" : "dark");
};
"""
MOST = 6  # folders of one name in a heading
FIGURES = (
    sections.perplexity_by_sparsity,
    sections.sparsity_by_block,
    sections.common_difference,
    sections.reconstruction_error,
    sections.mask_overlap,
    sections.training_curves,
    sections.costs,
)


def report(folders: Sequence[Path], path: Path) -> Path:
    """Write the page of all finished runs under the folders to `path`, and return it.

    Raises as `find_runs` on an empty folder, ValueError where no run measured perplexity.
    """
    runs = find_runs(folders)
    check_metric(runs, METRIC)
    write_text(path, page(by_protocol(runs, METRIC)))
    return path


def page(parts: Sequence[Sequence[RunRecord]]) -> str:
    """The whole page as text; parts: the runs of each protocol."""
    style = (PACKAGE / "assets" / "report.css").read_text(encoding="utf-8")
    runs = [run for part in parts for run in part]
    models = ", ".join(dict.fromkeys(group.model for part in parts for group in groups(part)))
    if len(parts) == 1:
        head, main = heading(parts[0]), section(parts[0])
    else:
        head = f"{', '.join(experiments(runs))}: {len(parts)} protocols, a section each"
        main = "".join(
            f'<section><h2>Protocol {number}</h2><p class="soft">{escape(heading(part))}</p>'
            f"{section(part)}</section>"
            for number, part in enumerate(parts, 1)
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>sparsemend: {escape(models)}</title><style>{style}</style></head><body>"
        f"<header><div><h1>Sparsity repair of {escape(models)}</h1>"
        f'<p class="soft">{escape(head)}</p></div>'
        '<button type="button">light / dark</button></header>'
        f"<main>{main}</main><footer>{escape(origin(runs))}</footer><script>{SCRIPT}</script></body></html>\n"
    )


def section(runs: Sequence[RunRecord]) -> str:
    """Summary and figures of the runs of one protocol."""
    run_groups = groups(runs)
    figures = "".join(figure(run_groups) for figure in FIGURES)
    return (
        f'{summary(run_groups)}<h2>Curves and costs</h2><div class="grid2">{figures}</div>'
        f"<h2>Settings and runs</h2>{sections.settings_table(run_groups)}"
    )


def heading(runs: Sequence[RunRecord]) -> str:
    """The experiments of one protocol, and what they measure."""
    labels = dict.fromkeys(protocol.label for protocol in protocols(runs, METRIC).values())
    return f"{', '.join(experiments(runs))}: {'; '.join(labels)}"


def experiments(runs: Sequence[RunRecord]) -> list[str]:
    """The names of the runs; one that stands in several folders with the folders."""
    folders: dict[str, dict[str, None]] = {}
    for run in runs:
        sweep = run.folder.name.isdigit()  # whose cells are numbered
        home = run.folder.parent if sweep else run.folder
        folders.setdefault(run.name, {})[home.name] = None
    return [
        name if len(homes) == 1 else f"{name} ({', '.join(list(homes)[:MOST])}{_more(homes)})"
        for name, homes in folders.items()
    ]


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - MOST} more" if len(names) > MOST else ""


def origin(runs: Sequence[RunRecord]) -> str:
    """One line on the commits and packages that the numbers were made with."""
    provenance = [run.result.provenance for run in runs]
    commits = sorted({str(p.commit)[:10] for p in provenance})
    dirty = any(run.dirty for run in runs)
    torch = sorted({str(p.packages.get("torch")) for p in provenance})
    state = "some runs of uncommitted sources" if dirty else "all of committed sources"
    return f"sparsemend {', '.join(commits)} ({state}), torch {', '.join(torch)}"
