"""Where the configuration and the embedded assets are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.configs import compose

from sparsemend.config import locations


def test_the_configuration_is_found_at_the_top_of_the_checkout() -> None:
    assert (locations.conf_folder() / "run.yaml").is_file()


def test_the_configuration_inside_an_installed_package_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "sparsemend"
    shutil.copytree(locations.conf_folder(), package / "conf")
    monkeypatch.setattr(locations, "PACKAGE", package)
    assert locations.conf_folder() == package / "conf"


def test_a_package_without_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "PACKAGE", tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError, match=r"no run\.yaml in .*; reinstall"):
        locations.conf_folder()


def test_an_embedded_name_becomes_a_folder_of_the_package() -> None:
    assert locations.resolve_path("embedded:tiny") == str(locations.PACKAGE / "assets" / "tiny")
    assert locations.resolve_path("org/name") == "org/name"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/llama-7b", "llama-7b"),
        ("/data/llama-7b/", "llama-7b"),
        ("org/llama-7b", "llama-7b"),
        ("llama-7b", "llama-7b"),
        ("out/2026-11-28/3/model", "2026-11-28/3/model"),
        ("/cache/models--org--llama-7b/snapshots/0a1b2c", "llama-7b"),
        ("$HOME/./llama", "llama"),
    ],
)
def test_a_model_is_named_after_its_place(path: str, name: str) -> None:
    assert locations.model_name(path) == name
    cfg = compose("run", ["model=local", f"model.path='{path}'"])
    assert cfg.model.name == name


def test_a_model_in_the_folder_one_works_in_is_named_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locations.model_name(".") == tmp_path.name


def test_a_name_of_ones_own_stays() -> None:
    assert (
        compose("run", ["model=local", "model.path=/a/b", "model.name=mine"]).model.name == "mine"
    )
    assert compose("run", []).model.name == "tiny"
