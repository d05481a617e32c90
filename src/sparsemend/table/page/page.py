"""`sparsemend-tables report`: result folders as one self-contained HTML page.

The page needs no network and no library: style sheet and charts are inside.  It is light or dark as
the reader's system is, or as its button says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sparsemend.config.locations import PACKAGE
from sparsemend.files import write_text
from sparsemend.names import METRIC
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.table.page import figures as sections
from sparsemend.table.page.groups import Group, groups
from sparsemend.table.page.summary import summary
from sparsemend.table.paper_table import check_metric, protocols

SCRIPT = """
const root = document.documentElement, set = t => root.dataset.theme = t;
if (["#dark", "#light"].includes(location.hash)) set(location.hash.slice(1));
document.querySelector("button").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  set(dark ? "light" : "dark");
};
"""
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

    Raises as `find_runs` on an empty folder, ValueError where runs of two protocols would mix.
    """
    runs = find_runs(folders)
    check_metric(runs, METRIC)
    write_text(path, page(runs, protocols(runs, METRIC)))
    return path


def page(runs: Sequence[RunRecord], measured: Mapping[str, Protocol]) -> str:
    """The whole page as text."""
    run_groups = groups(runs)
    style = (PACKAGE / "assets" / "report.css").read_text(encoding="utf-8")
    figures = "".join(figure(run_groups) for figure in FIGURES)
    models = ", ".join(dict.fromkeys(group.model for group in run_groups))
    labels = "; ".join(dict.fromkeys(protocol.label for protocol in measured.values()))
    experiments = ", ".join(dict.fromkeys(run.name for run in runs))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>sparsemend: {escape(models)}</title><style>{style}</style></head><body>"
        f"<header><div><h1>Sparsity repair of {escape(models)}</h1>"
        f'<p class="soft">{escape(experiments)}: {escape(labels)}</p></div>'
        '<button type="button">light / dark</button></header>'
        f"<main>{summary(run_groups)}<h2>Curves and costs</h2>"
        f'<div class="grid2">{figures}</div>'
        f"<h2>Settings and runs</h2>{sections.settings_table(run_groups)}"
        f"</main><footer>{escape(origin(run_groups))}</footer><script>{SCRIPT}</script></body></html>\n"
    )


def origin(run_groups: Sequence[Group]) -> str:
    """One line on the commits and packages that the numbers were made with."""
    provenance = [run.content["provenance"] for group in run_groups for run in group.runs]
    commits = sorted({str(p["commit"])[:10] for p in provenance})
    dirty = any(run.dirty for group in run_groups for run in group.runs)
    torch = sorted({str(p["packages"].get("torch")) for p in provenance})
    state = "some runs of uncommitted sources" if dirty else "all of committed sources"
    return f"sparsemend {', '.join(commits)} ({state}), torch {', '.join(torch)}"
