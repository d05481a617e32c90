"""The chat template that the embedded task may be rendered through (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.data.chat_template import check_chat_template


def check(asked: Asked) -> None:
    """Raise ValueError where a template is asked for and the model's tokenizer has none."""
    if asked.section.chat_template:
        check_chat_template(f"{asked.key}.chat_template", asked.cfg.model)
