import re

import pytest

from sparsemend.config.locations import PACKAGE
from sparsemend.errors import OverrideError
from sparsemend.table.measurement import measurement_of
from sparsemend.table.published import (
    OWN,
    PERCENT,
    SECOND_HAND,
    UNKNOWN,
    find_cell,
    published_numbers,
)

TABLE2 = "dsnot/table2/llama_7b/0.7/wanda/uniform/dsnot/wikitext2/perplexity"
TABLE1 = "dsnot/table1/llama2_7b/0.6/wanda/uniform/dsnot/wikitext2/perplexity"


def test_every_cell_has_an_identity_of_its_own() -> None:
    identities = [cell.identity for cell in published_numbers()]
    assert len(set(identities)) == len(identities) > 3000


def test_every_value_is_a_number_or_unknown_and_has_a_source() -> None:
    for cell in published_numbers():
        assert cell.value == UNKNOWN or cell.number is not None
        assert len(cell.source) > 10, cell.identity
        assert "" not in vars(cell).values(), cell.identity
        assert cell.reporter in (OWN, SECOND_HAND, UNKNOWN), cell.identity
        assert cell.deviation == UNKNOWN or float(cell.deviation) > 0, cell.identity


def test_sparsities_are_fractions_and_sequence_lengths_whole() -> None:
    for cell in published_numbers():
        assert cell.sparsity == UNKNOWN or 0 <= float(cell.sparsity) < 1
        assert cell.seqlen == UNKNOWN or int(cell.seqlen) in (2048, 4096)


@pytest.mark.parametrize(
    ("identity", "value"),
    [
        (TABLE1, 10.59),
        ("wanda/readme/llama2_7b/2:4/wanda/uniform/none/wikitext2/perplexity", 11.02),
        ("owl/readme/llama_7b/0.7/wanda/owl/none/wikitext2/perplexity", 24.55),
        ("dlp/readme/llama2_13b/0.7/wanda/dlp/none/wikitext2/perplexity", 16.19),
        ("atp/headline/llama2_7b/0.7/wanda/atp/none~atp_minus_uniform/wikitext2/perplexity_change",
         -52.10),
    ],
)  # fmt: skip
def test_numbers_are_the_sources(identity: str, value: float) -> None:
    assert find_cell(identity).number == value


# papers -> numbers, and numbers with a deviation, counted in the sources' own tables
SOURCES = {
    "alps": (1013, 725),  # 11 tables; no deviation where every seed gives the same
    "als": (229, 0),
    "lsa": (232, 0),  # 29 rows of 7 tasks and their mean
    "rethinking": (348, 0),  # 2 tables of 13 rows x 13 figures less the dense error, 12 in others
    "layerif": (12, 0),
    "alphapruning": (5, 0),
}


@pytest.mark.parametrize(("paper", "counted"), SOURCES.items())
def test_a_source_is_there_whole(paper: str, counted: tuple[int, int]) -> None:
    cells = [cell for cell in published_numbers() if cell.paper == paper]
    assert (len(cells), sum(cell.deviation != UNKNOWN for cell in cells)) == counted


@pytest.mark.parametrize(
    ("identity", "shown"),  # entered by hand from notes on the papers, not from the file
    [
        ("alps/table12/llama2_7b/0.6/wanda/uniform/none/wikitext2/perplexity", "10.82"),
        ("alps/table12/llama2_7b/0.6/-/uniform/dsnot/wikitext2/perplexity", "11.47"),
        ("alps/table16/llama2_7b/2:4/-/uniform/dsnot/wikitext2/perplexity", "12.68"),
        ("alps/table13/opt_6_7b/0.7/-/uniform/dsnot/wikitext2/perplexity", "7985"),
        ("alps/table6/llama2_7b/-/alps/uniform/none/-/prune_seconds", "3043"),
        ("dsnot/qwen3_4b/qwen3_4b/0.5/wanda/uniform/dsnot/wikitext/word_perplexity", "25.77"),
        ("dsnot/table2/llama_7b/0.7/wanda/uniform/none/wikitext2/perplexity", "88.84"),
        ("als/table1/llama2_13b/0.5/sparsegpt/uniform/none/wikitext/word_perplexity", "11.32"),
        ("als/table3/llama_30b/0.5/sparsegpt/als/none/zero_shot_average_8/accuracy_percent",
         "0.6902"),
        ("rethinking/table6/llama_7b/0.5/sparsegpt/uniform/reconstruct~same_inputs/-/"
         "peak_memory_GB", "5.7"),
        ("atp/table3/llama2_7b/0.7/wanda/atp/none/wikitext2/perplexity", "22.16"),
        ("alphapruning/table2/llama2_7b/0.7/wanda/alphapruning/none/wikitext2/perplexity",
         "28.87"),
        ("lsa/readme/qwen3_8b/0.7/wanda/dlp/none/arc_challenge/accuracy_percent", "0.2338"),
        ("lsa/readme/llama3_8b/0/none/-/none/zero_shot_average_7/accuracy_percent", "0.6558"),
    ],
)  # fmt: skip
def test_a_number_of_each_new_source_is_the_one_noted(identity: str, shown: str) -> None:
    assert find_cell(identity).shown_value == shown


def test_a_deviation_stands_beside_its_mean_in_the_same_unit() -> None:
    name = "alps/table11/llama2_7b/0.5/wanda/uniform/none/{}"
    assert find_cell(name.format("wikitext2/perplexity")).shown == "6.93 ± 0.01"
    assert find_cell(name.format("piqa/accuracy_percent")).shown == "0.7626 ± 0.0022"
    alone = find_cell("alps/table11/llama2_7b/0.5/magnitude/uniform/none/wikitext2/perplexity")
    assert alone.shown == "11.82"


def test_what_a_methods_own_paper_does_not_report_is_second_hand() -> None:
    reporters = {
        "wanda/readme/llama2_7b/2:4/wanda/uniform/none/wikitext2/perplexity": OWN,
        "alps/table12/llama2_7b/0.6/wanda/uniform/none/wikitext2/perplexity": SECOND_HAND,
        "alps/table12/llama2_7b/0.6/-/uniform/dsnot/wikitext2/perplexity": SECOND_HAND,
        "alps/table12/llama2_7b/0.6/alps/uniform/none/wikitext2/perplexity": OWN,
        "alps/table12/llama2_7b/0.6/magnitude/uniform/none/wikitext2/perplexity": UNKNOWN,
        "lsa/readme/qwen3_8b/0.7/wanda/dlp/none/arc_challenge/accuracy_percent": SECOND_HAND,
        # quoted by a third party
        "alphapruning/table2/llama2_7b/0.7/wanda/alphapruning/none/wikitext2/perplexity": (
            SECOND_HAND
        ),
    }
    for identity, reporter in reporters.items():
        assert find_cell(identity).reporter == reporter, identity
    assert not any(cell.second_hand for cell in published_numbers() if cell.dense)


def test_a_perplexity_of_words_shares_no_column_with_one_of_tokens() -> None:
    words = [cell for cell in published_numbers() if cell.metric == "word_perplexity"]
    assert {cell.paper for cell in words} == {"als", "dsnot"}
    names = {m.name for cell in words if (m := measurement_of(cell))}
    assert names == {"zero_shot/wikitext/word_perplexity"}
    tokens = [cell for cell in published_numbers() if cell.metric == "perplexity"]
    assert "als" not in {cell.paper for cell in tokens}


def test_no_value_is_impossible() -> None:
    for cell in published_numbers():
        number = cell.number
        if number is None:
            continue
        if cell.metric in ("perplexity", "word_perplexity"):
            assert number > 1, cell.identity
        if cell.metric in (PERCENT, "acc", "acc_norm"):
            assert 0 <= number <= 1, cell.identity


def test_a_published_mean_of_tasks_is_the_mean_of_the_published_tasks() -> None:
    papers = {"lsa": 7, "rethinking": 7}
    rows: dict[str, dict[str, float]] = {}
    for cell in published_numbers():
        if cell.paper in papers and cell.metric == PERCENT:
            row = cell.identity.rsplit("/", 2)[0]
            rows.setdefault(row, {})[cell.dataset] = float(cell.value)
    assert len(rows) == 29 + 2 * 13
    for row, values in rows.items():
        mean = values.pop("zero_shot_average_7")
        assert len(values) == papers[row.partition("/")[0]]
        # both sides are rounded to two decimals
        assert abs(sum(values.values()) / len(values) - mean) <= 0.011, row


def test_papers_agree_on_a_dense_model() -> None:
    agreed: dict[tuple[str, str, str], list[float]] = {}
    for cell in published_numbers():
        plain = "doubtful" not in cell.mark and not cell.mark.startswith("log")
        if cell.dense and cell.metric == "perplexity" and cell.seqlen != UNKNOWN and plain:
            key = (cell.model, cell.dataset, cell.seqlen)
            agreed.setdefault(key, []).append(float(cell.value))
    shared = {key: values for key, values in agreed.items() if len(values) > 1}
    assert len(shared) > 5
    for key, values in shared.items():
        # the papers' libraries and kernels: three hundredths
        assert max(values) - min(values) <= 0.03 + 1e-9, key


def test_numbers_not_read_from_text_are_marked() -> None:
    marks = {cell.table: cell.mark for cell in published_numbers() if cell.paper == "dsnot"}
    assert marks["readme_figure"].startswith("digitised")
    assert marks["reruns"].startswith("rerun")
    assert marks["table2"] == "derived"
    assert find_cell(TABLE2).mark == "second-hand"
    log = next(cell for cell in published_numbers() if cell.paper == "sp_lora")
    assert log.mark.startswith("log")


def test_the_page_of_tables_counts_what_is_there() -> None:
    page = (PACKAGE / "table" / "README.md").read_text(encoding="utf-8")
    for paper in {cell.paper for cell in published_numbers()}:
        cells = [cell for cell in published_numbers() if cell.paper == paper]
        row = re.search(rf"│ {paper} +│ +(\d+) │ +(\d+) │", page)
        assert row is not None, paper
        second_hand = sum(cell.second_hand for cell in cells)
        assert (int(row[1]), int(row[2])) == (len(cells), second_hand), paper
    assert f"knows {len(published_numbers()):,} published numbers" in page


def test_what_ran_out_of_memory_is_a_dash() -> None:
    naive = [c for c in published_numbers() if c.variant.startswith("SPP naive")]
    assert [cell.value for cell in naive] == [UNKNOWN]
    assert "out of memory" in naive[0].mark


def test_an_unknown_cell_is_refused_with_the_nearest() -> None:
    with pytest.raises(OverrideError, match="nearest: " + TABLE1):
        find_cell(TABLE1.replace("wanda", "wnda"))


def test_a_difference_knows_its_two_sides() -> None:
    cells = {cell.identity: cell for cell in published_numbers()}
    change = next(cell for cell in cells.values() if cell.variant == "dsnot minus none")
    assert change.sides is not None
    assert [side.method for side in change.sides] == ["dsnot", "none"]
    assert {side.metric for side in change.sides} == {"perplexity"}
    assert find_cell(TABLE1).sides is None


def test_a_dense_cell_is_one_without_pruner_or_repair() -> None:
    dense = [cell for cell in published_numbers() if cell.sparsity == "0" and cell.method == "none"]
    assert all(cell.dense and cell.pruner == "none" for cell in dense)
    assert not find_cell(TABLE1).dense
