"""A cache of `datasets` for local files that goes by their bytes.

The library tells a file by its path and time of change.  A file that another one of the same time
has replaced (cp -p, rsync -a, tar) would be read from the cache of the old one.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from sparsemend.config.values import digest
from sparsemend.files import file_digest


def content_cache(
    path: str, *, data_files: Any = None, data_dir: str | None = None
) -> dict[str, str]:
    """{"cache_dir": FOLDER} for `load_dataset`, a folder of what is read; empty for the hub's."""
    from datasets import config

    files = sorted(set(_local_files(path, data_files, data_dir)))
    if not files:
        return {}
    content = digest([[str(file), file_digest(file)] for file in files])
    return {"cache_dir": str(Path(config.HF_DATASETS_CACHE) / "by_content" / content[:32])}


@contextmanager
def content_decides() -> Iterator[None]:
    """While inside, `datasets.load_dataset` reads local files as they are now, whoever calls it."""
    import datasets

    original = datasets.load_dataset

    @wraps(original)
    def load_dataset(path: str, *arguments: Any, **settings: Any) -> Any:
        places = {key: settings[key] for key in ("data_files", "data_dir") if key in settings}
        chosen = content_cache(path, **places) if settings.get("cache_dir") is None else {}
        return original(path, *arguments, **settings | chosen)

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = original


def _local_files(path: str, data_files: Any, data_dir: str | None) -> Iterator[Path]:
    """The files of this machine that a call of `load_dataset` may read."""
    folder = Path(path) / (data_dir or "") if Path(path).is_dir() else Path(data_dir or "")
    if data_files is None and (Path(path).is_dir() or data_dir is not None):
        yield from (file for file in folder.rglob("*") if file.is_file())
    for name in _names(data_files):
        named = glob.glob(str(folder / name), recursive=True)  # noqa: PTH207, may be absolute
        # a name may be no pattern, and a pattern no name
        yield from (Path(n) for n in [*named, str(folder / name)] if Path(n).is_file())


def _names(data_files: Any) -> Iterable[str]:
    """The names and patterns of `data_files`: one, a list, or one or a list for each split."""
    if data_files is None:
        return []
    if isinstance(data_files, Mapping):
        return [name for value in data_files.values() for name in _names(value)]
    return [str(data_files)] if isinstance(data_files, str | Path) else list(map(str, data_files))
