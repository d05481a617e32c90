"""Prompt texts to the character, as the papers' codes publish them, and rows that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from sparsemend.data.prompts import TEMPLATES, Prompted, RowFormat

ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}
ALPACA_FIELDS = ("instruction", "input", "output")


def prompted(
    template: str, fields: Sequence[str | None], row: Mapping[str, object], *, empty: bool = False
) -> Prompted:
    return RowFormat(template, fields, empty).example(row, where="a.jsonl line 7")


def test_alpaca_with_an_input() -> None:
    assert prompted("alpaca", ALPACA_FIELDS, ROW) == Prompted(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Add.\n"
        "\n"
        "### Input:\n"
        "1 2\n"
        "\n"
        "### Response:\n",
        "3",
    )


ALPACA_WITHOUT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n"
    "\n"
    "### Instruction:\n"
    "Add.\n"
    "\n"
    "### Response:\n"
)


@pytest.mark.parametrize("nothing", ["", None])
def test_alpaca_without_an_input(nothing: str | None) -> None:
    row = {**ROW, "input": nothing}
    assert prompted("alpaca", ALPACA_FIELDS, row) == Prompted(ALPACA_WITHOUT, "3")


def test_alpaca_rows_that_have_no_input_at_all() -> None:
    row = {"instruction": "Add.", "output": "3"}
    fields = ("instruction", None, "output")
    assert prompted("alpaca", fields, row) == Prompted(ALPACA_WITHOUT, "3")


def test_llm_adapters_keeps_the_published_indentation_and_two_blanks_at_the_line_end() -> None:
    row = {**ROW, "input": ""}
    assert prompted("llm_adapters", ALPACA_FIELDS, row) == Prompted(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.  \n"
        "\n"
        "                ### Instruction:\n"
        "                Add.\n"
        "                \n"
        "                ### Response:\n"
        "                ",
        "3",
    )


def test_llm_adapters_with_an_input_has_one_blank_at_the_line_end() -> None:
    assert prompted("llm_adapters", ALPACA_FIELDS, ROW) == Prompted(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Add.\n"
        "                \n"
        "                ### Input:\n"
        "                1 2\n"
        "                \n"
        "                ### Response:\n"
        "                ",
        "3",
    )


def test_question_answer_gives_the_blank_to_the_answer() -> None:
    row = {"question": "1 + 2?", "answer": "1 + 2 = 3\n#### 3"}
    example = prompted("question_answer", ("question", "answer"), row)
    assert example == Prompted("Question: 1 + 2?\nAnswer:", " 1 + 2 = 3\n#### 3")


def test_plain_adds_nothing() -> None:
    assert prompted("plain", ("q", "a"), {"q": "x =", "a": "1"}) == Prompted("x =", "1")


def test_braces_in_a_row_are_only_text() -> None:
    row = {"question": "{answer} {0} {", "answer": "}"}
    example = prompted("question_answer", ("question", "answer"), row)
    assert example == Prompted("Question: {answer} {0} {\nAnswer:", " }")


def test_the_slots_of_every_template() -> None:
    assert {name: template.slots for name, template in TEMPLATES.items()} == {
        "alpaca": ("instruction", "input", "answer"),
        "llm_adapters": ("instruction", "input", "answer"),
        "question_answer": ("question", "answer"),
        "plain": ("prompt", "answer"),
    }


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"data\.template=vicuna is not one of alpaca, llm_adap"):
        RowFormat("vicuna", ALPACA_FIELDS, False)


@pytest.mark.parametrize("fields", [("a", "b"), ("a", "b", "c", "d"), (None, "b", "c")])
def test_fields_that_do_not_fit_the_template_are_refused_with_its_slots(
    fields: tuple[str | None, ...],
) -> None:
    message = r"does not name .* instruction, input, answer .*data\.fields=\[instruction,input,ans"
    with pytest.raises(ValueError, match=message):
        RowFormat("alpaca", fields, False)


def test_a_missing_field_is_refused_with_line_field_and_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl line 7 has no field output \(fields: instr"):
        prompted("alpaca", ALPACA_FIELDS, {"instruction": "Add.", "input": "", "response": "3"})


def test_a_missing_input_is_an_empty_one() -> None:
    without = {key: text for key, text in ROW.items() if key != "input"}
    expected = prompted("alpaca", ALPACA_FIELDS, {**without, "input": ""})
    assert prompted("alpaca", ALPACA_FIELDS, without) == expected


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_an_empty_answer_is_refused(answer: str | None) -> None:
    with pytest.raises(ValueError, match=r"line 7 has an empty output.*data\.empty_answers=true"):
        prompted("alpaca", ALPACA_FIELDS, {**ROW, "output": answer})


def test_an_empty_answer_is_kept_where_asked() -> None:
    example = prompted("plain", ("q", "a"), {"q": "x", "a": ""}, empty=True)
    assert example == Prompted("x", "")


@pytest.mark.parametrize(("value", "kind"), [(42, "int"), (["3"], "list"), (None, "NoneType")])
def test_what_is_no_text_is_refused_with_its_type(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"line 7 has instruction=.* of type {kind}"):
        prompted("alpaca", ALPACA_FIELDS, {**ROW, "instruction": value})


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="line 7 is no object of fields"):
        RowFormat("plain", ("q", "a"), False).example("text", where="a.jsonl line 7")
