"""Local files of tokens (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.data.local_files import check_apart, paths
from sparsemend.data.token_file import check_tokens


def check(asked: Asked) -> None:
    """Tokens files hold enough rows of ids that the vocabulary has; none is held out and seen."""
    data, config = asked.section, asked.model.config
    files = {p: paths(data[p]) for p in ("calibration", "train", "validation", "test")}
    for part, places in files.items():
        for path in places:
            check_tokens(
                f"{asked.key}.{part}",
                path,
                rows=data.calibration_samples if part == "calibration" else 1,
                seqlen=data.seqlen,
                vocabulary=config.vocabulary if config else None,
            )
    check_apart(asked.key, files)
