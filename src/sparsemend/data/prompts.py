"""Prompt formats of the papers' training data, as pure functions on strings.

A row fills the slots of a template; prompt and answer stay apart, so that a loss can leave the
prompt out.  The texts are published constants, kept to the character:

    alpaca           Stanford Alpaca as Alpaca-LoRA writes it (Taori et al. 2023); LoRS, SPP
    llm_adapters     LLM-Adapters' commonsense training (Hu et al. 2023, arXiv 2304.01933); its
                     models were trained on its indentation and its blanks at line ends
    question_answer  SQFT's GSM8K (arXiv 2410.03750), the format of the evaluation harness
    plain            the row's own prompt and answer, nothing added

Free of torch: files are checked before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from sparsemend.data.row_files import short_form, unencodable

ANSWER = "answer"  # the slot that every template has
OPTIONAL = "input"  # the slot that may be empty or absent: it chooses between two prompts


@dataclass(frozen=True)
class Prompted:
    """The text a model is given and the text it is to answer; it reads `prompt + answer`."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Template:
    """Prompt texts with {slots}; `with_input` is used where a row's input is not empty."""

    prompt: str
    with_input: str | None = None
    before_answer: str = ""  # belongs to the answer: tokenizers join a blank to the word after it

    @property
    def slots(self) -> tuple[str, ...]:
        """The texts a row must bring, the answer last."""
        fields = Formatter().parse(self.with_input or self.prompt)
        return (*(slot for _, slot, _, _ in fields if slot), ANSWER)

    def ask(self, texts: Mapping[str, str]) -> Prompted:
        """The texts of one row as a question and its answer, nothing of the template around them.

        A chat template has its own words around both.
        """
        asked = (texts[slot] for slot in self.slots if slot != ANSWER and texts.get(slot))
        return Prompted("\n\n".join(asked), texts[ANSWER])

    def fill(self, texts: Mapping[str, str]) -> Prompted:
        """The prompted example of one row's texts, {slot: text}."""
        chosen = self.prompt
        if self.with_input is not None and texts.get(OPTIONAL):
            chosen = self.with_input
        return Prompted(chosen.format_map(texts), self.before_answer + texts[ANSWER])


_TASK = "Below is an instruction that describes a task"
_CONTEXT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request."
_INDENT = " " * 16

TEMPLATES: Mapping[str, Template] = {
    "alpaca": Template(
        prompt=f"{_TASK}{_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
        with_input=(
            f"{_TASK}{_CONTEXT}{_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n"
            "### Input:\n{input}\n\n### Response:\n"
        ),
    ),
    "llm_adapters": Template(
        prompt=(
            f"{_TASK}{_REQUEST}  \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n"
            f"{_INDENT}\n{_INDENT}### Response:\n{_INDENT}"
        ),
        with_input=(
            f"{_TASK}{_CONTEXT}{_REQUEST} \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n"
            f"{_INDENT}\n{_INDENT}### Input:\n{_INDENT}{{input}}\n"
            f"{_INDENT}\n{_INDENT}### Response:\n{_INDENT}"
        ),
    ),
    "question_answer": Template(prompt="Question: {question}\nAnswer:", before_answer=" "),
    "plain": Template(prompt="{prompt}"),
}


@dataclass(frozen=True)
class RowFormat:
    """The template that the rows of a data set fill, and the columns that fill it.

    fields: one column for each slot of the template, in their order; that of `input` may be None
    where no row has one, and a row that lacks it has an empty one.  empty_answers: whether a row
    without an answer is kept (it then teaches the end of text alone) or refused.
    chat: leave the words of the template out, since those of a chat template follow.
    """

    template: str
    fields: Sequence[str | None]
    empty_answers: bool
    chat: bool = False

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(
                f"data.template={self.template} is not one of {', '.join(TEMPLATES)}; "
                "template=plain takes a prompt and an answer as they are"
            )
        slots = TEMPLATES[self.template].slots
        if len(self.fields) != len(slots) or any(
            column is None and slot != OPTIONAL
            for slot, column in zip(slots, self.fields, strict=True)
        ):
            raise ValueError(
                f"data.fields={_bracket_list(self.fields)} does not name one field for each of "
                f"{', '.join(slots)} (data.template={self.template}); give "
                f"data.fields={_bracket_list(slots)} with the fields' own names"
                + (f", null for {OPTIONAL} where rows have none" if OPTIONAL in slots else "")
            )

    @property
    def optional(self) -> str | None:
        """The column of the slot that may be empty; None where there is none."""
        slots = TEMPLATES[self.template].slots
        return self.fields[slots.index(OPTIONAL)] if OPTIONAL in slots else None

    def example(self, row: object, *, where: str) -> Prompted:
        """The example of one row; `where` names it in a message."""
        if not isinstance(row, Mapping):
            raise ValueError(f"{where} is no object of fields; give {{field: text, ...}}")
        template = TEMPLATES[self.template]
        texts = {
            slot: "" if column is None else self._text(row, slot, column, where)
            for slot, column in zip(template.slots, self.fields, strict=True)
        }
        if not texts[ANSWER].strip() and not self.empty_answers:
            raise ValueError(
                f"{where} has an empty {self.fields[-1]}, so there is nothing to learn; drop the "
                "row, or set data.empty_answers=true to keep it"
            )
        return template.ask(texts) if self.chat else template.fill(texts)

    def _text(self, row: Mapping[str, object], slot: str, column: str, where: str) -> str:
        """One text of a row; a slot that may be empty takes null, that of `input` no field too."""
        if column not in row and slot != OPTIONAL:
            raise ValueError(
                f"{where} has no field {column} (fields: {', '.join(map(str, row)) or 'none'}); "
                f"data.fields={_bracket_list(self.fields)} names the fields of "
                f"{', '.join(TEMPLATES[self.template].slots)}"
            )
        value = row.get(column)
        if value is None and slot in (OPTIONAL, ANSWER):
            return ""
        if not isinstance(value, str):
            raise ValueError(
                f"{where} has {column}={short_form(value)} of type {type(value).__name__}; give "
                "text in quotes"
            )
        if unencodable(value):
            raise ValueError(f"{where} has half of a surrogate pair in {column}; mend the row")
        return value


def _bracket_list(fields: Sequence[str | None]) -> str:
    return f"[{','.join(field or 'null' for field in fields)}]"
