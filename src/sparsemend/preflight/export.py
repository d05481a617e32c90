"""Refuse an export that would write nothing, or that could not be written at the end."""

from __future__ import annotations

import re

from omegaconf import DictConfig

from sparsemend.config.export import packed_values, stored_dtype
from sparsemend.config.flags import says
from sparsemend.preflight.vocabulary import leaves_whole, name_of


def check_export(cfg: DictConfig) -> None:
    """Raise ValueError where keys of an export contradict each other or the rest."""
    check_push(cfg)
    values, dtype = packed_values(cfg), stored_dtype(cfg)
    if values is None:
        if cfg.export_values is not None:
            raise ValueError(
                f"export_values={cfg.export_values} is for packed weights; add export_form=packed"
            )
        return
    if not cfg.export:
        raise ValueError("export_form=packed says how to export; add export=true")
    if dtype == "float16":
        raise ValueError(
            "export_form=packed stores float32 and bfloat16 models, and this one is float16; add "
            "export_dtype=bfloat16 or export_dtype=float32"
        )
    if (values, dtype) == ("bfloat16", "float32"):
        raise ValueError(
            "export_values=bfloat16 would round the weights of a float32 model; add "
            "export_dtype=bfloat16, which rounds them before their zeros are counted"
        )
    if leaves_whole(cfg.pruner) or (says(cfg.pruner, "prunes") and cfg.sparsity == 0):
        raise ValueError(
            f"export_form=packed: pruner={name_of(cfg.pruner)} with sparsity={cfg.sparsity} leaves "
            "no zero, so there is nothing to pack; set export_form=dense"
        )
    if not says(cfg.method, "foldable"):
        raise ValueError(
            f"export_form=packed: method={name_of(cfg.method)} leaves its adapter beside the "
            "weights, which a packed linear has no place for; set export_form=dense"
        )


def check_push(cfg: DictConfig) -> None:
    """Raise ValueError where an export could not be uploaded; the Hub itself is asked later."""
    repository = cfg.export_push
    if repository is None:
        if cfg.export_private is not None:
            raise ValueError(
                f"export_private={str(cfg.export_private).lower()} is for a repository; add "
                "export_push=OWNER/NAME"
            )
        return
    from huggingface_hub import constants, get_token

    if not cfg.export:
        raise ValueError(f"export_push={repository} uploads what is exported; add export=true")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repository)):
        raise ValueError(f"export_push={repository} is not OWNER/NAME of a repository on the Hub")
    if constants.is_offline_mode():
        raise ValueError(
            f"export_push={repository} needs the Hub, and HF_HUB_OFFLINE is set; unset it, or "
            "upload the folder later: hf upload"
        )
    if get_token() is None:
        raise ValueError(
            f"export_push={repository} needs a token that may write; set HF_TOKEN, or log in: "
            "hf auth login"
        )
