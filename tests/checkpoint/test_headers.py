"""The header of a safetensors file, read without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemend.checkpoint.headers import read_header, read_metadata


@pytest.mark.parametrize(("header", "why"), [(b"[1, 2, 3]", "not a JSON object"), (b"{,", "JSON")])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, header: bytes, why: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=f"a.safetensors is not a safetensors file: .*{why}"):
        read_metadata(path)


@pytest.mark.parametrize("header", [b'{"a": 1}', b'{"a": {"shape": [1]}}'])
def test_a_header_that_describes_no_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"a\.safetensors .* does not describe tensors"):
        read_header(path)
