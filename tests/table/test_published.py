import pytest

from sparsemend.errors import OverrideError
from sparsemend.table.published import UNKNOWN, find_cell, published_numbers

TABLE1 = "dsnot/table1/llama2_7b/0.6/wanda/uniform/dsnot/wikitext2/perplexity"


def test_every_cell_has_an_identity_of_its_own() -> None:
    identities = [cell.identity for cell in published_numbers()]
    assert len(set(identities)) == len(identities) > 1000


def test_every_value_is_a_number_or_unknown_and_has_a_source() -> None:
    for cell in published_numbers():
        assert cell.value == UNKNOWN or cell.number is not None
        assert len(cell.source) > 10, cell.identity
        assert "" not in vars(cell).values(), cell.identity


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


def test_numbers_not_read_from_text_are_marked() -> None:
    marks = {cell.table: cell.mark for cell in published_numbers() if cell.paper == "dsnot"}
    assert marks["readme_figure"].startswith("digitised")
    assert marks["reruns"].startswith("rerun")
    assert marks["table2"] == "second-hand"
    log = next(cell for cell in published_numbers() if cell.paper == "sp_lora")
    assert log.mark.startswith("log")


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
