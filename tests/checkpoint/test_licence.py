"""The base model's name and licence: read from its card or its LICENSE file, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsemend.checkpoint.licence import base_model, front_matter


def base_of(folder: Path | str, name: str = "local") -> Any:
    return base_model({"name": name, "path": str(folder), "revision": None})


def test_the_licence_of_the_card_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: llama2\ntags: [a]\n---\n# It\n")
    (tmp_path / "LICENSE").write_text("MIT License\n")
    found = base_of(tmp_path)
    assert found.front_matter == {"license": "llama2"}
    assert found.licence == "llama2 (its model card)"
    assert found.name == tmp_path.name


def test_a_named_licence_keeps_its_name_and_link(tmp_path: Path) -> None:
    entries = "license: other\nlicense_name: house\nlicense_link: LICENSE\n"
    (tmp_path / "README.md").write_text(f"---\n{entries}---\n")
    found = base_of(tmp_path)
    assert found.front_matter["license_link"] == "LICENSE"
    assert found.licence == "house (its model card)"


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("\n  Apache License\n  Version 2.0, January 2004\n", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2020\n", "mit"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\n", "llama2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n", "llama3"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        ("House rules\nof mine\n", "other"),
    ],
)
def test_a_licence_file_is_known_by_its_title(text: str, identifier: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# without front matter\n")
    (tmp_path / "LICENSE.txt").write_text(text)
    found = base_of(tmp_path)
    assert found.front_matter["license"] == identifier
    assert found.licence.endswith("(its LICENSE.txt)")
    if identifier == "other":
        assert found.licence.startswith("House rules")


def test_without_either_it_is_unknown(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", "nobody/nothing-here"):
        found = base_of(path)
        assert found.front_matter == {"license": "unknown"}
        assert found.licence == "unknown, see base model"
    assert found.name == "nobody/nothing-here"


def test_random_weights_have_no_licence() -> None:
    assert base_model({"name": "tiny_untrained"}).name == "tiny_untrained"


def test_the_embedded_model_has_its_own() -> None:
    found = base_of("embedded:tiny", "tiny")
    assert (found.name, found.front_matter["license"]) == ("tiny", "apache-2.0")


def test_an_export_passes_on_what_it_was_made_from(tmp_path: Path) -> None:
    entries = "license: mit\nbase_model: org/first\ntags: [sparse, sparsemend]\n"
    (tmp_path / "README.md").write_text(f"---\n{entries}---\n")
    assert base_of(tmp_path).name == "org/first"
    (tmp_path / "README.md").write_text("---\nbase_model: org/first\n---\n")
    assert base_of(tmp_path).name == tmp_path.name


@pytest.mark.parametrize(
    "text", ["", "# title", "---\na: b\n", "---\na: [\n---\n", "---\n- a\n---\n"]
)
def test_front_matter_that_is_none_is_empty(text: str) -> None:
    assert front_matter(text) == {}
