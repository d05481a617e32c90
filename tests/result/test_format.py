import pytest

from sparsemend.result.format import format_metric


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (18.5551, 3, "18.555"),
        (18.5551, 2, "18.56"),
        (99_999.4, 1, "99999.4"),
        (123_456.7, 3, "1.23e+05"),
        (-123_456.7, 3, "-1.23e+05"),
        (None, 3, "-"),
    ],
)
def test_decimals_up_to_a_broken_models_perplexity(
    value: float | None, digits: int, text: str
) -> None:
    assert format_metric(value, digits) == text


def test_a_card_writes_large_numbers_out() -> None:
    assert format_metric(123_456.7, 4, large="{:,.0f}".format) == "123,457"
