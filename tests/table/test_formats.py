import csv
import io
import re
from pathlib import Path
from typing import Any

from support import result_folders as made

from sparsemend.table.collect import collect
from sparsemend.table.formats import comma_separated, latex, markdown
from sparsemend.table.paper_table import PaperTable, table

METRIC = "perplexity/test"


def three_seeds(**changes: Any) -> PaperTable:
    base = {"method": "dsnot", "name": "dsnot/table1"}
    runs = [made.record(seed=seed, repaired=20.0 + seed, **(base | changes)) for seed in range(3)]
    return table("dsnot/table1", runs, METRIC)


def test_markdown_has_a_row_per_method_with_ours_theirs_and_runs() -> None:
    lines = markdown(three_seeds()).splitlines()
    assert lines[2] == "| sparsity | row | tiny | paper (llama_7b) | difference | runs |"
    assert lines[4] == "| - | dense | 15.000 ± 0.000 | 5.68 (~) | - | 3 |"
    assert lines[6] == "| 0.6 | wanda + dsnot | 21.000 ± 1.000 | 10.22 (~) | - | 3 |"
    assert lines[5] == "| 0.6 | wanda | 30.000 ± 0.000 | 10.69 (~s) | - | 3 |"


def test_markdown_names_protocol_marks_and_source() -> None:
    text = markdown(three_seeds(dirty=True))
    assert "perplexity/test on python_docs/test, 256 tokens a window" in text
    assert "21.000 ± 1.000 (+)" in text
    assert "+ a run of uncommitted sources" in text
    assert "paper: DSnoT (arXiv 2310.08915) Table 1" in text
    assert "1 a single seed" not in text


def test_a_single_seed_is_marked() -> None:
    one = table("default", [made.record()], METRIC)
    assert "20.000 (1)" in markdown(one)
    assert "1 a single seed" in markdown(one)


def test_a_setting_that_looks_like_a_mark_is_none() -> None:
    runs = [made.record(seed=s, variant="1 epoch", repaired=20.0 + s) for s in range(2)]
    text = markdown(table("default", runs, METRIC))
    assert "masked_lora (1 epoch)" in text
    assert "1 a single seed" not in text


def test_latex_is_a_tabular_with_as_many_columns_as_heads() -> None:
    text = latex(three_seeds())
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {row.count("&") + 1 for row in rows} == {len(columns[1])}
    assert r"21.000 $\pm$ 1.000" in text
    assert "masked_lora" not in text.replace(r"\_", "")


def test_csv_has_every_line_with_source_and_mark() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated([three_seeds()]))))
    repaired = next(row for row in rows if row["method"] == "dsnot")
    assert (repaired["mean"], repaired["deviation"], repaired["seeds"]) == ("21.0", "1.0", "3")
    assert (repaired["published"], repaired["difference"]) == ("10.22", "-")
    assert (repaired["mark"], repaired["reporter"]) == ("image", "own")
    assert {row["reporter"] for row in rows} == {"own", "other", "-"}


def test_a_published_deviation_stands_beside_its_mean_and_in_a_column_of_its_own() -> None:
    of = {"model": "llama2_7b", "method": "none", "sparsity": 0.5, "name": "alps/table11"}
    found = table("alps/table11", [made.record(**of)], METRIC)
    assert "| 6.93 ± 0.01 (~s) |" in markdown(found)
    pruned = next(r for r in csv.DictReader(io.StringIO(comma_separated([found])))
                  if r["pruner"] == "wanda")  # fmt: skip
    assert (pruned["published"], pruned["published_deviation"]) == ("6.93", "0.01")


def test_collect_writes_five_formats(tmp_path: Path, capsys) -> None:
    made.write(tmp_path / "runs" / "0", made.result())
    paths = collect([tmp_path / "runs"], METRIC, [], tmp_path / "out")
    names = {path.name for path in paths}
    assert names == {"tables.md", "tables.tex", "tables.csv", "default.png", "default.svg"}
    assert (tmp_path / "out" / "default.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "default.svg").read_text()
    assert capsys.readouterr().out.startswith("### default")


def test_equal_results_give_equal_pictures(tmp_path: Path) -> None:
    made.write(tmp_path / "runs" / "0", made.result())
    for out in ("one", "two"):
        collect([tmp_path / "runs"], METRIC, [], tmp_path / out)
    for name in ("default.svg", "default.png"):
        one, two = (tmp_path / out / name for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
