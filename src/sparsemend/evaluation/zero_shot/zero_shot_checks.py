"""The zero-shot tasks that are asked for (no torch, no lm-eval)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.tokenizer import check_has_tokenizer
from sparsemend.config.asked import Asked
from sparsemend.data.chat_template import check_chat_template
from sparsemend.evaluation.zero_shot.task_names import answer_tokens, find_tasks
from sparsemend.result.protocol import solved_examples


def check(asked: Asked) -> None:
    """Raise ValueError or FileNotFoundError unless every task that is asked for exists."""
    settings = asked.section
    check_has_tokenizer("evaluation=zero_shot", asked.cfg.model, "leave zero_shot out")
    if settings.batch == 0:
        raise ValueError("evaluation.zero_shot.batch=0 is below 1; null: hardware.evaluation_batch")
    if settings.tasks is None and settings.suite not in settings.suites:
        raise ValueError(
            f"evaluation.zero_shot.suite={settings.suite} is not one of "
            f"{', '.join(settings.suites)}; or give evaluation.zero_shot.tasks=[TASK]"
        )
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise FileNotFoundError(
            f"evaluation.zero_shot.include_path={settings.include_path} is no folder; give one of "
            "lm-eval task yamls"
        )
    tasks = _tasks_of(settings)
    for task, count in tasks.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(
                f"evaluation.zero_shot.tasks.{task}={count} is not an integer of at least 0; set "
                f"evaluation.zero_shot.tasks.{task}=0"
            )
    if not tasks:
        raise ValueError(
            "evaluation.zero_shot.tasks is empty; name at least one, for example "
            "evaluation.zero_shot.tasks={piqa: 0}"
        )
    find_tasks(list(tasks), settings.include_path)
    for task, count in answer_tokens(tasks, settings.include_path).items():
        if count >= settings.max_length:
            raise ValueError(
                f"evaluation.zero_shot.max_length={settings.max_length} leaves no room for a "
                f"question of {task}, whose answers take up to {count} tokens; give more than "
                f"{count}, or leave the task out"
            )
    if settings.chat_template:
        check_chat_template("evaluation.zero_shot.chat_template", asked.cfg.model)


def needs_whole_model(section: DictConfig) -> str | None:
    """The reason why these tasks cannot be measured with one block in memory; None without one."""
    if str(section.batch).startswith("auto"):
        return (
            f"evaluation.zero_shot.batch={section.batch} tries out what fits beside a whole model"
        )
    generating = answer_tokens(_tasks_of(section), section.include_path)
    if not generating:
        return None
    return (
        f"{', '.join(generating)} of evaluation.zero_shot.tasks generates answers token by token, "
        "for each of which every block would be read anew"
    )


def _tasks_of(section: DictConfig) -> Mapping[str, int]:
    """Task -> number of solved examples, as the section says."""
    if section.tasks is not None:
        return solved_examples(section.tasks)
    suite: Mapping[str, int] = section.suites[section.suite]
    return suite
