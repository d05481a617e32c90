import json
import logging
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from support.configs import compose
from support.evaluation_inputs import evaluation_input
from support.streaming import Elsewhere, streamed
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.walk import Calibration
from sparsemend.data.documentation import documents, split_text
from sparsemend.evaluation.base import EvaluationInput
from sparsemend.evaluation.zero_shot.task_names import SHIPPED
from sparsemend.evaluation.zero_shot.tasks import docs
from sparsemend.evaluation.zero_shot.zero_shot import ZeroShot, figure, numbers
from sparsemend.method.adapter.low_rank import attach_adapters
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear
from sparsemend.model import ModelSource
from sparsemend.preflight import check as preflight
from sparsemend.prune import prune
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.run.export import export, to_dense_
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.mask_file import save_masks
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

LIMIT = 6


def evaluation(*overrides: str) -> ZeroShot:
    lines = ["evaluation=[zero_shot]", *(f"evaluation.zero_shot.{o}" for o in overrides)]
    made = instantiate(compose("run", lines).evaluation.zero_shot, _convert_="all")
    assert isinstance(made, ZeroShot)
    return made


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return instantiate(compose("run").model)


@pytest.fixture
def tiny(source: ModelSource) -> PreTrainedModel:
    return source.load(seed=0)


def given(out: Path, tokenizer: PreTrainedTokenizerBase | None) -> EvaluationInput:
    nothing = torch.empty(0, 8, dtype=torch.int64)
    return evaluation_input(nothing, tokenizer=tokenizer, batch_size=4, out=out)


@pytest.mark.parametrize("items", [docs.continuations, docs.summaries])
def test_items_have_four_different_choices_of_about_one_length(items: Any) -> None:
    rows = items(version=1.0)["test"]
    assert 150 < len(rows) <= 250
    places = [0] * 4
    for row in rows:
        assert len(set(row["choices"])) == 4
        places[row["gold"]] += 1
        right = len(row["choices"][row["gold"]])
        assert all(0.4 * right < len(choice) < 2.5 * right for choice in row["choices"])
    assert min(places) > len(rows) / 8  # the right one stands everywhere


def test_no_choice_is_right_more_or_less_often_for_its_length() -> None:
    """The longest or the shortest choice is right as often as chance has it."""
    for items in (docs.continuations, docs.summaries):
        rows = items()["test"]
        for extreme in (max, min):
            hits = sum(
                len(row["choices"][row["gold"]]) == extreme(map(len, row["choices"]))
                for row in rows
            )
            # three standard deviations of 200 draws at 1/4, and ties
            assert hits / len(rows) < 0.25 + 3 * (0.1875 / len(rows)) ** 0.5 + 0.08


def test_every_item_is_of_a_document_that_was_never_trained_on() -> None:
    held_out = "\n".join(d.text for d in documents() if d.split == "test")
    trained = split_text("train")
    for row in docs.continuations()["test"]:
        assert row["context"] in held_out
        assert row["context"] not in trained


def test_accuracy_is_that_of_summed_log_likelihoods(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    """Against a loop over choices, one forward each."""
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    measured = evaluation(f"limit={LIMIT}")(tiny, given(tmp_path, tokenizer))
    for task, items, delimiter in (
        ("docs_continuation", docs.continuations, " "),
        ("docs_summary", docs.summaries, "\n\n"),
    ):
        hits, normed = 0, 0
        for row in items()["test"].select(range(LIMIT)):
            scores = []
            for choice in row["choices"]:
                # a prompt and what follows it are tokenised as one text, cut behind the prompt
                start = len(tokenizer(row["context"])["input_ids"])
                ids = torch.tensor([tokenizer(row["context"] + delimiter + choice)["input_ids"]])
                with torch.no_grad():
                    logits = tiny(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
                scores.append(-float(F.cross_entropy(logits, ids[0, start:], reduction="sum")))
            hits += int(np.argmax(scores)) == row["gold"]
            per_byte = [s / len(c.encode()) for s, c in zip(scores, row["choices"], strict=True)]
            normed += int(np.argmax(per_byte)) == row["gold"]
        assert measured[f"zero_shot/{task}"] == hits / LIMIT
        assert measured[f"zero_shot/{task}/acc_norm"] == normed / LIMIT
    both = [measured[f"zero_shot/{task}"] for task in ("docs_continuation", "docs_summary")]
    assert measured["zero_shot/mean"] == measured["zero_shot/mean/acc"] == sum(both) / 2
    tasks = ("docs_continuation", "docs_summary")
    assert measured["zero_shot/mean/acc_norm"] == sum(
        measured[f"zero_shot/{task}/acc_norm"] / 2 for task in tasks
    )


def test_the_harnesss_own_results_are_kept_and_the_protocol_told(
    tiny: PreTrainedModel,
    source: ModelSource,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = evaluation("limit=2", "tasks={docs_summary: 0}", "metric=acc_norm")
    with caplog.at_level(logging.WARNING):
        metrics = made(tiny, given(tmp_path, source.tokenizer()))
    assert "only the first 2 items of every task" in caplog.text
    raw = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())
    assert raw[0]["results"]["docs_summary"]["acc_norm,none"] == metrics["zero_shot/docs_summary"]
    assert raw[0]["n-samples"]["docs_summary"] == {"original": 200, "effective": 2}
    assert raw[0]["config"]["limit"] == 2
    told = made.describe()
    assert told["task_versions"] == {"docs_summary": 1.0}
    assert told["harness"].startswith("lm-eval 0.4")
    assert (told["limit"], told["max_length"], told["add_bos_token"]) == (2, 256, False)


CHAT = "{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}"


def test_items_are_turns_of_the_chat_template_and_begin_with_bos_where_asked(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    made = evaluation(
        "limit=2", "tasks={docs_summary: 0}", "chat_template=true", "keep_samples=true"
    )
    tokenizer = source.tokenizer()
    with pytest.raises(ValueError, match=r"zero_shot\.chat_template=true, but the tokenizer of"):
        made.check_tokenizer(tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = CHAT
    tiny.config.model_type = "gemma2"  # which needs BOS
    made(tiny, given(tmp_path, tokenizer))
    raw = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())
    prompt = raw[0]["samples"]["docs_summary"][0]["arguments"][0][0]
    assert prompt.startswith("[user]")
    assert (made.describe()["chat_template"], made.describe()["add_bos_token"]) == (True, True)


def test_items_follow_the_chat_template_of_the_data() -> None:
    def composed(*lines: str) -> Any:
        return compose("run", ["evaluation=[zero_shot]", *lines]).evaluation.zero_shot

    assert composed().chat_template is False
    assert composed("data=python_docs_task", "data.chat_template=true").chat_template is True


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded() -> None:
    lines = ["evaluation=[zero_shot]", "evaluation.zero_shot.chat_template=true"]
    with pytest.raises(ValueError, match=r"evaluation\.zero_shot\.chat_template=true, but the tok"):
        preflight.check(compose("run", lines))


def test_a_task_of_the_users_that_cannot_be_carried_out_is_one_line(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1"}\n')
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ntest_split: train\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {tmp_path}/rows.jsonl}}\ndoc_to_target: 0\n"
        "doc_to_text: '{{question.part.text}}'\ndoc_to_choice: ['2', '3']\n"
    )
    made = evaluation("tasks={mine: 0}", f"include_path={tmp_path}")
    with pytest.raises(ValueError, match=r"^evaluation\.zero_shot\.tasks=mine: ") as caught:
        made(tiny, given(tmp_path, source.tokenizer()))
    assert "UndefinedError: 'str object' has no attribute 'part'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # the texts below take the same way in the default tier
def test_a_streamed_model_gives_every_item_the_same_likelihoods(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    made = evaluation("limit=3", "tasks={docs_summary: 0}", "keep_samples=true")
    asked = given(tmp_path, source.tokenizer())
    expected = made(tiny, asked)
    whole = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())[0]["samples"]
    few = replace(asked, states_bytes=100_000)  # a walk for one or two of the batches
    model = streamed(tiny)
    assert made(model, few) == expected
    walked = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())[0]["samples"]
    assert [sample["resps"] for sample in walked["docs_summary"]] == [
        sample["resps"] for sample in whole["docs_summary"]
    ]


def test_texts_of_a_streamed_model_are_walked_together_and_answers_not_generated(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance

    asked, made = given(tmp_path, source.tokenizer()), evaluation("max_length=16")
    texts = [
        Instance("loglikelihood_rolling", {}, (text,), number, ("text", number, 1))
        for number, text in enumerate(("a short text", "tensors have a dtype and a shape. " * 9))
    ]
    expected = made._adapter(tiny, asked).loglikelihood_rolling(texts, disable_tqdm=True)
    model = streamed(tiny)
    adapter = made._adapter(model, asked)
    assert adapter.loglikelihood_rolling(texts, disable_tqdm=True) == expected
    residency = residency_of(model)
    assert isinstance(residency, Elsewhere)
    assert residency.visits.count((residency.last, False)) == 1  # one walk for all windows
    with pytest.raises(ValueError, match="text generates answers token by token"):
        adapter.generate_until(texts)


@pytest.mark.slow  # the sums of fp32 models are tested in this tier too
def test_likelihoods_of_a_bf16_model_are_summed_in_fp32(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    """In bf16, scores between -64 and -128 would be multiples of a half."""
    made = evaluation("limit=2", "tasks={docs_summary: 0}", "keep_samples=true")
    made(tiny.to(torch.bfloat16), given(tmp_path, source.tokenizer()))
    raw = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())
    scores = [
        float(answer[0][0] if isinstance(answer[0], list) else answer[0])
        for sample in raw[0]["samples"]["docs_summary"]
        for answer in sample["resps"]
    ]
    assert len(scores) == 8
    rounded = torch.tensor(scores).bfloat16().float()
    assert not torch.equal(rounded, torch.tensor(scores))


def test_everything_is_left_as_it_was(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    bits = {name: value.clone() for name, value in tiny.state_dict().items()}
    special = tokenizer.special_tokens_map
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    level = logging.getLogger("lm_eval").level
    evaluation("limit=2", "tasks={docs_summary: 0}")(tiny, given(tmp_path, tokenizer))
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected  # noqa: NPY002
    assert all(torch.equal(value, bits[name]) for name, value in tiny.state_dict().items())
    assert tokenizer.special_tokens_map == special
    assert not tiny.training
    assert logging.getLogger("lm_eval").level == level


def test_an_adapter_that_is_not_folded_is_evaluated_with_its_base(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    unstructured = Pattern.parse("unstructured")
    rates = Uniform().allocate(tiny, Calibration(()), 0.3, unstructured)
    prune(tiny, Calibration(()), Magnitude(group="row"), rates, unstructured)
    scores = []
    for open_adapter in (False, True):
        if open_adapter:

            def wrapped(name: str, linear: SparseLinear) -> SparseLinear:
                adapter = MaskedLoraLinear(linear, torch.ones(1, linear.in_features), 1.0)
                torch.nn.init.constant_(adapter.lora_b, 1e-2)
                return adapter

            attach_adapters(tiny, wrapped)
        made = evaluation("limit=2", "tasks={docs_summary: 0}", "keep_samples=true")
        made(tiny, given(tmp_path, source.tokenizer()))
        raw = json.loads((tmp_path / "zero_shot" / "dense.json").read_text())
        scores.append([item["filtered_resps"] for item in raw[0]["samples"]["docs_summary"]])
    assert scores[0] != scores[1]


def test_the_figure_of_a_task_is_the_metric_asked_for_or_accuracy() -> None:
    result = {"alias": "x", "acc,none": 0.5, "acc_norm,none": 0.6, "acc_stderr,none": "N/A"}
    assert figure(result, "acc") == 0.5
    assert figure(result, "acc_norm") == 0.6
    assert figure({"acc,none": 0.5}, "acc_norm") == 0.5
    strict = {"exact_match,flexible-extract": 0.3, "exact_match,strict-match": 0.2}
    assert figure(strict, "acc") == 0.2
    assert numbers(strict) == {
        "exact_match@flexible-extract": 0.3,
        "exact_match@strict-match": 0.2,
    }
    assert numbers(result) == {"acc": 0.5, "acc_norm": 0.6}
    with pytest.raises(ValueError, match="reports bleu: neither accuracy nor"):
        figure({"alias": "wmt", "bleu,none": 9.0}, "acc")


def test_a_text_has_a_perplexity_of_words_and_no_part_in_the_mean(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"word_perplexity,none": 9.5, "byte_perplexity,none": 1.5}
    results = {"wikitext": text, "piqa": {"acc,none": 0.25, "acc_norm,none": 0.75}}
    monkeypatch.setattr(
        ZeroShot, "_harness", lambda *_: [{"results": results, "versions": {"wikitext": 2.0}}]
    )
    model = torch.nn.Linear(1, 1)
    both = evaluation("tasks={wikitext: 0, piqa: 0}", "add_bos_token=false")
    metrics = both(model, given(tmp_path, source.tokenizer()))
    assert metrics["zero_shot/wikitext/word_perplexity"] == 9.5
    assert "zero_shot/wikitext" not in metrics
    assert (metrics["zero_shot/mean"], metrics["zero_shot/mean/acc_norm"]) == (0.25, 0.75)
    alone = evaluation("tasks={wikitext: 0}", "add_bos_token=false")
    assert set(alone(model, given(tmp_path, source.tokenizer()))) == {
        "zero_shot/wikitext/word_perplexity",
        "zero_shot/wikitext/byte_perplexity",
    }


def test_a_model_without_a_tokenizer_is_refused(tiny: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads text and the model folder has no tokenizer"):
        evaluation()(tiny, given(tmp_path, None))


@pytest.mark.parametrize(
    ("setting", "message"),
    [("metric=f1", "'f1' is not one of: acc, acc_norm"), ("limit=0", "limit 0 is below 1")],
)
def test_settings_that_cannot_work_are_refused(setting: str, message: str) -> None:
    with pytest.raises(Exception, match=message):  # hydra wraps what a constructor raises
        evaluation(setting)


@pytest.mark.slow  # the accuracy is that of summed log-likelihoods, tested here
def test_the_harness_alone_finds_the_same_in_an_exported_folder(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path
) -> None:
    """As its command line loads it: by path and arguments, without this package's classes."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    unstructured = Pattern.parse("unstructured")
    rates = Uniform().allocate(tiny, Calibration(()), 0.4, unstructured)
    prune(tiny, Calibration(()), Magnitude(group="row"), rates, unstructured)
    tokenizer = source.tokenizer()
    ours = evaluation("limit=4")(tiny, given(tmp_path, tokenizer))
    masks = tmp_path / "masks.safetensors"
    save_masks({name: linear.keep for name, linear in sparse_linears(tiny)}, masks)
    export(to_dense_(tiny), tokenizer, tmp_path / "model", masks=masks, card="")
    theirs = simple_evaluate(
        "hf",
        harness_arguments(tmp_path / "model"),
        tasks=["docs_continuation", "docs_summary"],
        task_manager=TaskManager(include_path=str(SHIPPED), include_defaults=False),
        batch_size=4,
        device="cpu",
        limit=4,
    )
    assert theirs is not None
    for task, result in theirs["results"].items():
        for name, value in numbers(result).items():
            assert ours[f"zero_shot/{task}/{name}"] == value


@pytest.mark.parametrize(
    "limit",
    [pytest.param(40, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.commands)],
)
def test_the_lm_eval_command_line_prints_the_same_digits_for_an_exported_folder(
    tiny: PreTrainedModel, source: ModelSource, tmp_path: Path, limit: int | None
) -> None:
    """Items, or all of them, in a process that only knows the folder and the shipped yamls."""
    unstructured = Pattern.parse("unstructured")
    rates = Uniform().allocate(tiny, Calibration(()), 0.5, unstructured)
    prune(tiny, Calibration(()), Magnitude(group="row"), rates, unstructured)
    tokenizer = source.tokenizer()
    ours = evaluation(f"limit={limit or 'null'}")(tiny, given(tmp_path, tokenizer))
    masks = tmp_path / "masks.safetensors"
    save_masks({name: linear.keep for name, linear in sparse_linears(tiny)}, masks)
    export(to_dense_(tiny), tokenizer, tmp_path / "model", masks=masks, card="")
    arguments = ["--model", "hf", "--tasks", "docs_continuation,docs_summary"]
    arguments += ["--model_args", harness_arguments(tmp_path / "model")]
    arguments += ["--include_path", str(SHIPPED), "--batch_size", "4", "--device", "cpu"]
    arguments += ["--output_path", str(tmp_path / "theirs")]
    arguments += ["--limit", str(limit)] if limit else []
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(path.read_text())
    for task in ("docs_continuation", "docs_summary"):
        count = theirs["n-samples"][task]
        assert count["original"] > 150
        assert count["effective"] == (limit or count["original"])
        for name in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
            assert ours[f"zero_shot/{task}/{name}"] == theirs["results"][task][f"{name},none"]


def harness_arguments(folder: Path) -> str:
    """What the command line must be told to measure as our defaults do."""
    return f"pretrained={folder},dtype=float32,max_length=256,add_bos_token=False"
