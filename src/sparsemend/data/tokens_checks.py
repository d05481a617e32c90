"""Local files of tokens (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.data.local_files import paths
from sparsemend.data.token_file import check_tokens


def check(asked: Asked) -> None:
    """Tokens files hold enough rows of ids that the vocabulary has."""
    data, config = asked.section, asked.model.config
    for part in ("calibration", "train", "validation", "test"):
        for path in paths(data[part]):
            check_tokens(
                f"{asked.key}.{part}",
                path,
                rows=data.calibration_samples if part == "calibration" else 1,
                seqlen=data.seqlen,
                vocabulary=config.vocabulary if config else None,
            )
