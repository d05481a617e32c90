"""The report page of made-up runs, read as text and, where there is one, in a headless browser."""

import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from support import result_folders as made

from sparsemend.result.runs import find_runs
from sparsemend.table.page.figures import (
    common_difference,
    perplexity_by_sparsity,
    settings_table,
    training_curves,
)
from sparsemend.table.page.groups import (
    block_errors,
    curve,
    groups,
    names,
    peak_bytes,
    styles,
    supports,
    total_seconds,
    with_unrepaired,
)
from sparsemend.table.page.page import experiments, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
)
HALF = torch.arange(16).reshape(2, 8) % 2 == 0


class Outline(HTMLParser):
    """Collects what a page loads and whether its tags close."""

    void = ("meta", "br", "link", "img", "rect", "line", "polyline", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {v}" for k, v in attrs if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def folders(tmp_path: Path) -> Path:
    """Two methods at two sparsities and two seeds, and a common difference that varies."""
    number = 0
    for method, repaired in (("masked_lora", 20.0), ("lors", 21.0)):
        for sparsity in (0.5, 0.6):
            for seed in (0, 1):
                value = repaired + 10 * sparsity + seed
                base = made.result(method=method, sparsity=sparsity, seed=seed, repaired=value)
                content = made.with_errors(base, [0.1, 0.2, 0.4], 2.0)
                folder = made.write(tmp_path / "runs" / str(number), content)
                made.add_masks(folder, HALF if method == "lors" else ~HALF)
                made.add_curves(folder, "training", "0,5.0,\n1,4.0,3.5\n")
                number += 1
    for difference in (0, 0.01):
        content = made.result(
            method="none",
            schedule="atp",
            schedule_knobs={"common_difference": difference},
            sparsity=0.7,
            pruned=40 - 100 * difference,
        )
        made.write(tmp_path / "runs" / str(number), content)
        number += 1
    return tmp_path / "runs"


def page(tmp_path: Path) -> str:
    return report([folders(tmp_path)], tmp_path / "report.html").read_text()


def test_debug_runs_are_marked_and_stand_apart_from_real_ones(tmp_path: Path) -> None:
    for number, debug in enumerate([None, {"blocks": 2}]):
        content = made.result()
        content["config"]["debug"] = debug
        made.write(tmp_path / "runs" / str(number), content)
    text = report([tmp_path / "runs"], tmp_path / "report.html").read_text()
    assert "Sparsity repair of tiny, tiny (DEBUG RUN, 2 blocks)" in text
    rows = re.findall(r"<tr><td>(tiny[^<]*?)  [^<]*</td>", text)
    assert {"tiny", "tiny (DEBUG RUN, 2 blocks)"} <= set(rows)


def test_the_page_is_self_contained_well_formed_and_small(tmp_path: Path) -> None:
    text = page(tmp_path)
    outline = Outline()
    outline.feed(text)
    assert (outline.open, outline.loads) == ([], [])
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text) < 10e6


@pytest.mark.parametrize(
    "title",
    ["Perplexity against sparsity", "Sparsity per block", "Common difference", "Mask overlap",
     "Reconstruction error per block", "Training loss", "Validation loss", "Seconds per stage",
     "Peak memory"],
)  # fmt: skip
def test_every_figure_is_there_once(tmp_path: Path, title: str) -> None:
    assert page(tmp_path).count(f"<b>{title}</b>") == 1


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    made.write(tmp_path / "runs" / "0", made.result())
    text = report([tmp_path / "runs"], tmp_path / "report.html").read_text()
    for absent in ("Common difference", "Mask overlap", "Reconstruction error", "Training loss"):
        assert absent not in text
    assert "<b>Perplexity</b>" in text  # bars, as there is one sparsity


def test_the_table_has_means_over_seeds_and_marks_the_best_of_each_sparsity(
    tmp_path: Path,
) -> None:
    text = page(tmp_path)
    assert "<td>0.5  wanda + lors</td><td>26.50 ± 0.71</td>" in text
    assert '<td>0.5  wanda + masked_lora</td><td class="best">25.50 ± 0.71</td>' in text
    assert text.count('class="best"') == 3


def test_the_pruned_state_of_repaired_runs_is_a_line_of_its_own(tmp_path: Path) -> None:
    found = with_unrepaired(groups(find_runs([folders(tmp_path)])))
    unrepaired = {g.row.sparsity: g for g in found if g.row.method == "none" and not g.settings}
    assert sorted(unrepaired) == [0.5, 0.6, 0.7]
    assert [run.seed for run in unrepaired[0.5].runs] == [0, 1]  # two methods, each seed once
    assert unrepaired[0.5].metric("perplexity/test") == 30.0
    assert with_unrepaired(found) == found


def test_what_only_sets_other_keys_does_not_tell_runs_apart() -> None:
    plain, of_arena = made.result(seed=0), made.result(seed=1)
    of_arena["config"] |= {"arena": {"row": "lors", "steps": 60}, "budget": "tokens"}
    (group,) = groups([made.record_of(plain), made.record_of(of_arena)])
    assert (len(group.runs), dict(group.settings)) == (2, {})


def test_runs_that_repeat_a_seed_are_one_seed() -> None:
    values = ((0, 10.0), (0, 10.0), (0, 10.0), (1, 20.0))
    runs = [made.record(str(i), seed=s, repaired=v) for i, (s, v) in enumerate(values)]
    (group,) = groups(runs)
    assert group.metric("perplexity/test") == 15.0
    assert group.metric_deviation("perplexity/test") == pytest.approx(50**0.5)


def test_a_continued_run_took_all_its_attempts() -> None:
    content = made.result()
    content["earlier_attempts"] = [{"repair": {"seconds": 5000.0, "peak_bytes": 2**30}}]
    one = made.record_of(content)
    assert total_seconds(one) == 5006.0
    assert peak_bytes(one) == 2**30


def test_common_differences_of_two_settings_are_two_lines(tmp_path: Path) -> None:
    for i, (at, rate) in enumerate(itertools.product((0.01, 0.02), (0.001, 0.1))):
        of = {"schedule": "atp", "schedule_knobs": {"common_difference": at}}
        content = made.result(
            knobs={"learning_rate": rate}, repaired=20.0 + 480 * (rate > 0.01), **of
        )
        made.write(tmp_path / str(i), content)
    text = common_difference(groups(find_runs([tmp_path])))
    assert "learning_rate=0.001" in text
    assert "learning_rate=0.1" in text


def test_settings_of_several_sparsities_are_no_bars(tmp_path: Path) -> None:
    for sparsity, method in ((0.5, "lors"), (0.7, "spp")):
        content = made.result(sparsity=sparsity, method=method)
        made.write(tmp_path / method, content)
    assert "Perplexity against sparsity" in perplexity_by_sparsity(groups(find_runs([tmp_path])))


def test_an_open_adapter_is_no_best_of_a_sparsity(tmp_path: Path) -> None:
    for method, perplexity in (("lora", 10.0), ("lors", 20.0)):
        content = made.result(method=method, repaired=perplexity)
        content["repair"]["foldable"] = method != "lora"
        content["sparsity"]["effective"] = 0.6 if method == "lors" else 0.0
        made.write(tmp_path / method, content)
    text = report([tmp_path], tmp_path / "report.html").read_text()
    assert '<td>wanda + lors</td><td class="best">20.00</td>' in text
    assert "0.0000" in text


def test_the_growth_of_the_error_stands_beside_its_line(tmp_path: Path) -> None:
    assert "0.5  wanda + lors: x2.000" in page(tmp_path)


def test_names_are_escaped(tmp_path: Path) -> None:
    made.write(tmp_path / "runs" / "0", made.result(name="<script>x"))
    text = report([tmp_path / "runs"], tmp_path / "report.html").read_text()
    assert "&lt;script&gt;x" in text


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_of_two_protocols_are_two_sections(tmp_path: Path) -> None:
    for index, (seqlen, value) in enumerate(((256, 20.0), (128, 30.0), (256, 22.0))):
        content = made.result(protocol={"seqlen": seqlen}, repaired=value, seed=index)
        made.write(tmp_path / str(index), content)
    text = report([tmp_path], tmp_path / "report.html").read_text()
    Outline().feed(text)
    _, first, second = text.split("<section>")
    assert "256 tokens a window" in first
    assert "21.00 ± 1.41" in first
    assert "128 tokens a window" in second
    assert "30.00" in second
    assert "2 protocols, a section each" in text


def test_one_protocol_needs_no_sections(tmp_path: Path) -> None:
    made.write(tmp_path / "0", made.result())
    assert "<section>" not in report([tmp_path], tmp_path / "report.html").read_text()


def test_equal_names_are_told_apart_by_their_folders() -> None:
    runs = [made.record(f"multirun/{folder}") for folder in ("a/0", "a/1", "b", "c")]
    assert experiments(runs[:2]) == ["default"]
    assert experiments(runs) == ["default (a, b, c)"]
    many = [made.record(f"run_{number}") for number in range(9)]
    assert experiments(many)[0].endswith("run_5 and 3 more)")


def test_a_measurement_is_that_of_the_final_state(tmp_path: Path) -> None:
    runs = find_runs([folders(tmp_path)])
    assert block_errors(runs[0], "repaired") == [0.1, 0.2, 0.4]
    assert block_errors(runs[0], "pruned") == []


def test_curves_of_a_resumed_run_go_on(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "0", made.result())
    made.add_curves(folder, "training", "0,5.0,\n10,4.0,\n20,3.9,\n")
    made.add_curves(folder, "training-2", "20,3.5,\n30,3.0,2.0\n")
    (run,) = find_runs([tmp_path])
    assert curve(run, "train/loss") == [(0, 5.0), (10, 4.0), (20, 3.5), (30, 3.0)]
    assert curve(run, "validation/loss") == [(30, 2.0)]


def test_overlap_counts_weights_kept_by_both_and_by_either(tmp_path: Path) -> None:
    keeps = [torch.zeros(3, 11, dtype=torch.bool) for _ in range(2)]
    keeps[0][:, :6] = True
    keeps[1][:, 4:11] = True
    masks = []
    for index, keep in enumerate(keeps):
        folder = made.write(tmp_path / str(index), made.result())
        made.add_masks(folder, keep)
        masks.append(supports(made.record(folder)))
    assert masks[0] is not None
    assert masks[1] is not None
    both = int((keeps[0] & keeps[1]).sum())
    either = int((keeps[0] | keeps[1]).sum())
    assert masks[0].overlap(masks[1]) == both / either == 6 / 33
    assert masks[0].overlap(masks[0]) == 1.0


def test_a_method_has_one_colour_and_a_sparsity_one_dash() -> None:
    runs = [made.record(method=m, sparsity=s) for m in ("lors", "spp") for s in (0.5, 0.6)]
    found = groups(runs)
    drawn = dict(zip(names(found), styles(found), strict=True))
    assert drawn["0.5  wanda + lors"][0] == drawn["0.6  wanda + lors"][0]
    assert drawn["0.5  wanda + spp"][1] == drawn["0.5  wanda + lors"][1]
    assert len(set(drawn.values())) == 4


def browse(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_it_light_dark_and_on_a_phone(tmp_path: Path) -> None:
    page(tmp_path)
    probe = (
        "<script>document.title=[getComputedStyle(document.body).backgroundColor,"
        "document.documentElement.scrollWidth<=innerWidth].join(' ')</script></body>"
    )
    text = (tmp_path / "report.html").read_text()
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe))

    def title(theme: str, size: str) -> Any:
        address = f"file://{tmp_path / 'probe.html'}#{theme}"
        dumped = browse(tmp_path, f"--window-size={size}", "--dump-dom", address)
        return re.search(r"<title>(.*?)</title>", dumped)

    shown = {
        key: title(*key)[1]
        for key in (("light", "1200,900"), ("dark", "1200,900"), ("light", "390,844"))
    }
    assert shown["light", "1200,900"] == "rgb(246, 247, 249) true"
    assert shown["dark", "1200,900"] == "rgb(17, 21, 28) true"
    assert shown["light", "390,844"].endswith("true")  # nothing is wider than the screen


def test_lines_that_differ_in_their_sparsity_alone_have_colours_of_their_own(
    tmp_path: Path,
) -> None:
    for number, sparsity in enumerate((0.5, 0.6, 0.7)):
        content = made.result(method="lors", sparsity=sparsity, seed=0, repaired=20.0)
        folder = made.write(tmp_path / str(number), content)
        made.add_curves(folder, "training", "0,5.0,\n1,4.0,3.5\n")
    chart = training_curves(groups(find_runs([tmp_path])))
    strokes = set(re.findall(r'<polyline class="s (k\d)"', chart))
    assert strokes == {"k0", "k1", "k2"}


def test_every_setting_is_listed_with_its_differences_and_folders(tmp_path: Path) -> None:
    for number, rate in enumerate((0.001, 0.1)):
        content = made.result(knobs={"learning_rate": rate})
        made.write(tmp_path / str(number), content)
    runs = find_runs([tmp_path])
    table = settings_table(groups(runs))
    assert all(str(run.folder) in table for run in runs)
    assert "method.learning_rate=0.001" in table
