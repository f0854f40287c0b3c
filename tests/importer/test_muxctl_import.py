"""muxctl import: names, existing folders, and what stays when an import fails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muxd.cli.importing import model_folder
from muxd.cli.muxctl import app
from muxd.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUXD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def old_folder(home: Path) -> Path:
    folder = home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("old")
    return folder


@pytest.mark.parametrize("name", ["mine", "my_model", "Llama-3.2_1B.q4", "0", "x" * 128])
def test_names_that_are_taken(home: Path, name: str) -> None:
    assert model_folder(name) == home / "models" / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/a", "-a", "a\n", "a b", "ä", "a\0b", "x" * 129]
)
def test_names_that_lead_elsewhere_are_refused(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a model name: use letters"):
        model_folder(name)


def test_an_existing_folder_is_kept_without_force(home: Path) -> None:
    folder = old_folder(home)
    done = CliRunner().invoke(app, ["import", "x.gguf", "--name", "mine"])
    assert done.exit_code == 1
    assert f"{folder} already exists; choose another --name, or replace it with --force" in done.stderr
    assert (folder / "config.json").read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_cannot_be_imported_changes_nothing(home: Path, tmp_path: Path, force: bool) -> None:
    if force:
        old_folder(home)
    source = tmp_path / "x.gguf"
    source.write_bytes(b"GGUF" + bytes(60))
    done = CliRunner().invoke(app, ["import", str(source), "--name", "mine", *(["--force"] if force else [])])
    assert done.exit_code == 1
    assert done.stderr.startswith("muxctl: ")
    assert str(source) in done.stderr
    assert os.listdir(home / "models") == (["mine"] if force else [])


def test_an_import_prints_what_to_paste_and_force_replaces(
    home: Path, write_tiny: Callable[..., Any]
) -> None:
    source = write_tiny("llama").path
    folder = old_folder(home)
    done = CliRunner().invoke(app, ["import", str(source), "--name", "mine", "--force"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith(f'[[model]]\nname = "mine"\npath = "{folder}"\n')
    assert (folder / "model.safetensors").is_file()
    assert (folder / "config.json").read_text() != "old"
    assert os.listdir(home / "models") == ["mine"]
