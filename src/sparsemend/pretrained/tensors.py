"""Compare the tensors of a file with those of the class that was filled with them.

Transformers gives random numbers to what a file lacks, drops what its class does not have, and
says so in a log.  Here both are errors, but for what the class itself leaves out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from sparsemend.checkpoint.names import EXTRA, name_some

log = logging.getLogger(__name__)

# buffers that older releases saved and that are computed now: causal masks, rotary frequencies
CONSTANTS = re.compile(
    r"(\battn|\battention)\.(bias|masked_bias)$|\brotary_emb\.inv_freq$|\bposition_ids$|\bversion$"
)


def check_tensors(path: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Raise ValueError unless file and class hold the same tensors; `report` is the loader's."""
    name = type(model).__name__
    if sizes := sorted(report["mismatched_keys"]):
        tensor, saved, expected = sizes[0]
        raise ValueError(
            f"model {path} does not fit its config.json: {tensor} is {tuple(saved)} in the file "
            f"and {tuple(expected)} in {name} ({len(sizes)} of its tensors differ in size); give "
            "the config.json and the weights of one model"
        )
    missing = set(report["missing_keys"])
    foreign = {key for key in report["unexpected_keys"] if not is_spare(key, model)}
    parts = [
        f"{what}: {name_some(names)} ({len(names)} in all)"
        for names, what in (
            (missing, "the file lacks, so that it would be random"),
            (foreign, "the file holds, without a place for it"),
        )
        if names
    ]
    if parts:
        raise ValueError(
            f"model {path} does not fit {name}, which its config.json asks for; "
            f"{'; '.join(parts)}; give a checkpoint of this very architecture, as its "
            "save_pretrained writes it"
        )
    if report["error_msgs"]:
        raise ValueError(f"model {path} cannot be loaded: {report['error_msgs'][0]}")


def is_spare(key: str, model: PreTrainedModel) -> bool:
    """Whether a tensor may be left out: a constant, or of the blocks that predict later tokens."""
    if CONSTANTS.search(key):
        return True
    config: Any = model.config.get_text_config()
    blocks = getattr(config, "num_hidden_layers", None)
    extra = max(getattr(config, name, None) or 0 for name in EXTRA)
    numbers = re.search(r"\blayers\.(\d+)\.", key)
    return bool(numbers and blocks and blocks <= int(numbers[1]) < blocks + extra)


def warn_left_out(path: str, model: PreTrainedModel, names: list[str]) -> None:
    """Name the tensors of a file that the class leaves out on purpose, and an export with it."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ())]
    own_names = set(model.state_dict())
    left_out = [
        name
        for name in names
        if not CONSTANTS.search(name)
        and name not in own_names
        and (is_spare(name, model) or any(re.search(pattern, name) for pattern in patterns))
    ]
    if left_out:
        log.warning(
            "%s does not use %d tensors of %s (%s): they are not in an export",
            type(model).__name__,
            len(left_out),
            path,
            name_some(left_out),
        )
