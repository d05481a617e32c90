"""Large tensors lie on large pages, where the system has them, and hold what they held."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from sparsemend.engine.pages import PAGE, copied_to_large_pages


def test_a_copy_holds_the_same_and_a_small_tensor_stays_itself() -> None:
    large = torch.arange(PAGE // 4).view(-1, 2).T
    copy = copied_to_large_pages(large)
    assert torch.equal(copy, large)
    assert copy.is_contiguous()
    small = torch.arange(5)
    assert copied_to_large_pages(small) is small


@pytest.mark.skipif(sys.platform != "linux", reason="the advice is Linux's")
def test_its_whole_pages_are_advised() -> None:
    copy = copied_to_large_pages(torch.ones(2 * PAGE))
    page = -(-copy.data_ptr() // PAGE) * PAGE
    flags = ""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= page < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel has no large pages")
    assert " hg" in flags
