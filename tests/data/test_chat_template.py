"""Examples as turns of the tokenizer's chat template, and models that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.configs import compose
from transformers import PreTrainedTokenizerFast

from sparsemend.data.base import UNLABELLED
from sparsemend.data.chat_template import check_chat_template, check_renders
from sparsemend.data.examples import Wording, encode_examples, render
from sparsemend.data.prompts import Prompted, RowFormat
from sparsemend.preflight.check import check

Tokenizer = PreTrainedTokenizerFast
TEMPLATE = (
    "{% for m in messages %}<{{m.role}}>{{m.content}}</{{m.role}}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLES = [Prompted("one", "1"), Prompted("two?", "second")]


@pytest.fixture
def chat_tokenizer(bos_tokenizer: Tokenizer) -> Tokenizer:
    """A token per sign; it puts BOS in front of a text by itself, which a template replaces."""
    bos_tokenizer.chat_template = TEMPLATE
    return bos_tokenizer


def test_an_example_is_a_users_and_an_assistants_turn(chat_tokenizer: Tokenizer) -> None:
    whole = render(chat_tokenizer, EXAMPLES, answered=True)
    assert whole[0] == "<user>one</user><assistant>1</assistant>"
    asked = render(chat_tokenizer, EXAMPLES, answered=False)
    assert asked[1] == "<user>two?</user><assistant>"


def test_the_answer_and_the_end_of_its_turn_alone_are_labelled(chat_tokenizer: Tokenizer) -> None:
    encoded = encode_examples(
        EXAMPLES, chat_tokenizer, seqlen=99, mask_prompt=True, wording=Wording(chat=True)
    )
    texts = render(chat_tokenizer, EXAMPLES, answered=True)
    assert [chat_tokenizer.decode(e.tokens) for e in encoded] == texts  # no BOS, no EOS of ours
    learnt = [[i for i in e.labels if i != UNLABELLED] for e in encoded]
    assert [chat_tokenizer.decode(row) for row in learnt] == ["1</assistant>", "second</assistant>"]


def test_bos_is_put_before_a_template_that_lacks_it(chat_tokenizer: Tokenizer) -> None:
    bos = chat_tokenizer.bos_token_id
    for template in (TEMPLATE, "{{bos_token}}" + TEMPLATE):
        chat_tokenizer.chat_template = template
        wording = Wording(bos=bos, chat=True)
        encoded = encode_examples(
            EXAMPLES, chat_tokenizer, seqlen=99, mask_prompt=True, wording=wording
        )
        assert [e.tokens.count(bos) for e in encoded] == [1, 1]
        assert all(e.tokens[0] == bos for e in encoded)
        assert chat_tokenizer.decode([i for i in encoded[0].labels if i > 0]) == "1</assistant>"


def test_a_template_that_refuses_the_turns_is_one_line(chat_tokenizer: Tokenizer) -> None:
    chat_tokenizer.chat_template = "{{ raise_exception('a system turn is needed') }}"
    with pytest.raises(ValueError, match=r"template: .*a system turn is needed; set data\.chat_"):
        render(chat_tokenizer, EXAMPLES, answered=True)


def test_a_tokenizer_without_a_template_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"data\.chat_template=true, but the tokenizer of this"):
        render(byte_tokenizer, EXAMPLES, answered=True)


def test_a_row_leaves_the_words_of_the_papers_template_out() -> None:
    chat = RowFormat("alpaca", ("instruction", "input", "output"), False, chat=True)
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert chat.example(row, where="") == Prompted("Add.\n\n1 2", "3")
    assert chat.example({**row, "input": ""}, where="") == Prompted("Add.", "3")
    asked = RowFormat("question_answer", ("q", "a"), False, chat=True)
    assert asked.example({"q": "1 + 1?", "a": "2"}, where="") == Prompted("1 + 1?", "2")


def test_training_on_conversations_leaves_the_prompt_out_unless_it_is_asked_for() -> None:
    def composed(*lines: str) -> Any:
        return compose("run", ["data=alpaca", *lines]).data

    assert composed().mask_prompt is False
    assert composed("data.chat_template=true").mask_prompt is True
    assert composed("data.chat_template=true", "data.mask_prompt=false").mask_prompt is False


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_file_of_a_template_is_one(tmp_path: Path, name: str) -> None:
    model = OmegaConf.create({"path": str(tmp_path)})
    with pytest.raises(ValueError, match="has no chat template"):
        check_chat_template("data.chat_template", model)
    (tmp_path / name).write_text(TEMPLATE)
    check_chat_template("data.chat_template", model)


def test_the_tokenizers_config_may_have_it(tmp_path: Path) -> None:
    model = OmegaConf.create({"path": str(tmp_path)})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    check_chat_template("data.chat_template", model)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
        check_chat_template("data.chat_template", model)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m }}", r"line 1 of its chat template: Unexpected end"),
        ("{{ messages | nosuch }}", r"line 1 of its chat template: No filter named 'nosuch'"),
    ],
)
def test_a_template_that_is_not_jinja_is_refused_with_its_file(
    tmp_path: Path, template: str, why: str
) -> None:
    model = OmegaConf.create({"path": str(tmp_path)})
    file = tmp_path / "tokenizer_config.json"
    for value in (template, [{"name": "default", "template": template}]):
        file.write_text(json.dumps({"chat_template": value}))
        with pytest.raises(
            ValueError, match=rf"=true: .*tokenizer_config\.json is not valid.*{why}"
        ):
            check_chat_template("data.chat_template", model)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)  # which is taken first
    check_chat_template("data.chat_template", model)
    file.unlink()
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=rf"chat_template\.jinja is not valid Jinja \({why}"):
        check_chat_template("data.chat_template", model)


def test_the_marks_of_transformers_are_jinja_too(tmp_path: Path) -> None:
    marked = (
        "{% for m in messages %}{%- generation -%}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    )
    (tmp_path / "chat_template.jinja").write_text(marked)
    check_chat_template("data.chat_template", OmegaConf.create({"path": str(tmp_path)}))


def test_a_template_that_refuses_a_question_is_named_by_the_models_folder(
    chat_tokenizer: Tokenizer,
) -> None:
    check_renders("k", chat_tokenizer, solved=True)
    chat_tokenizer.name_or_path = "/models/x"
    chat_tokenizer.chat_template = "{{ messages[2].content }}"
    check_renders("k", chat_tokenizer, solved=True)
    with pytest.raises(ValueError, match=r"k=true: the chat template .* in /models/x: .*k=false"):
        check_renders("k", chat_tokenizer, solved=False)


def test_the_hub_is_not_asked_early() -> None:
    check_chat_template("data.chat_template", OmegaConf.create({"path": "org/name"}))


@pytest.mark.parametrize("model", ["tiny", "tiny_untrained"])
def test_a_model_without_a_template_is_refused_before_it_is_loaded(model: str) -> None:
    lines = [f"model={model}", "data=python_docs_task", "data.chat_template=true"]
    with pytest.raises(ValueError, match=r"^data\.chat_template=true, but the tokenizer of this"):
        check(compose("run", lines))
