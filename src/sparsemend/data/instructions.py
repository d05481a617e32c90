"""Instruction data: rows of a hub repository or of local files, in the papers' prompt formats.

Validation is held out of train as the papers' codes do, by `datasets`' train_test_split with one
seed: a permutation whose head is held out.  Where the data set has no test split, the task's
test examples come next in that permutation.  A split may be given by rows, `train[-2000:]`, which
takes nothing out of train.  The hold-out seed is a key of its own, so runs of
several seeds compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from sparsemend.data.base import DataSource
from sparsemend.data.hub_files import load_rows
from sparsemend.data.instruction_files import (
    check_held_out,
    check_some,
    examples_of,
    file_examples,
    key_and_file,
    split_files,
    split_rows,
)
from sparsemend.data.prompted import PromptedSource
from sparsemend.data.prompts import Prompted, RowFormat

Splits = Mapping[str, list[Prompted]]


class Instructions(PromptedSource):
    """Examples of `path` or of files; `text` is pruned on and measured.

    path: hub id, local folder laid out like it, file, or None.  train, validation, test: a split
    of `path`, a file, or None: then as many examples as configured are held out of train.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | None,
        config: str | None,
        train: str,
        validation: str | None,
        test: str | None,
        template: str,
        fields: Sequence[str | None],
        empty_answers: bool,
        validation_examples: int,
        test_examples: int,
        split_seed: int,
        mask_prompt: bool,
        packing: bool,
        bos: bool,
        chat_template: bool,
        calibration_from: str,
        seqlen: int,
        calibration_samples: int,
        text: DataSource,
    ) -> None:
        super().__init__(
            name=name,
            seqlen=seqlen,
            calibration_samples=calibration_samples,
            mask_prompt=mask_prompt,
            packing=packing,
            bos=bos,
            chat_template=chat_template,
            calibration_from=calibration_from,
            text=text,
        )
        self.path, self.config = path, config
        self.places = {"train": train, "validation": validation, "test": test}
        self.row_format = RowFormat(template, tuple(fields), empty_answers, chat=chat_template)
        self.held_out = {"validation": validation_examples, "test": test_examples}
        self.split_seed = split_seed

    def examples(self, split: str) -> Sequence[Prompted]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        """The examples of every split, read once."""
        read = {key: self._read(key, place) for key, place in self.places.items() if place}
        wanted = {key: 0 if key in read else count for key, count in self.held_out.items()}
        return held_out(read.pop("train"), wanted, seed=self.split_seed) | read

    def _read(self, key: str, place: str) -> list[Prompted]:
        name, part = split_rows(place)
        everything = self._read_whole(key, name)
        check_some(key, place, len(everything))
        return everything[part]

    def _read_whole(self, key: str, name: str) -> list[Prompted]:
        files = split_files(key, self.path, self.config, name)
        if files is None:
            assert self.path is not None
            rows = load_rows(self.path, self.config, split=name)
            numbered = ((f"row {number}", row) for number, row in enumerate(rows))
            return list(examples_of(f"data.{key}={name} ({self.path})", numbered, self.row_format))
        return [
            example
            for file in files
            for example in file_examples(file, self.row_format, key_and_file(key, name, file))
        ]


def held_out(
    examples: list[Prompted], wanted: Mapping[str, int], *, seed: int
) -> dict[str, list[Prompted]]:
    """{split: examples}: train in its order, less the `wanted` ones at the head of a permutation.

    The first held-out part is that of train_test_split(test_size=..., seed=seed) of `datasets`.
    """
    check_held_out(len(examples), wanted)
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    parts, start = {}, 0
    for key, count in wanted.items():
        parts[key] = [examples[index] for index in order[start : start + count]]
        start += count
    return {"train": [examples[index] for index in sorted(order[start:])], **parts}
