"""muxctl import: names, existing folders, and what stays when an import fails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muxd.cli.importing import model_folder
from muxd.cli.muxctl import app
from muxd.config import home as muxd_home
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


@pytest.mark.slow
def test_check_compares_what_was_imported(
    write_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = muxd_home() / "native"
    monkeypatch.setenv("MUXD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "native").symlink_to(compiled)  # half a minute
    source = write_tiny("llama", "Q8_0").path
    done = CliRunner().invoke(app, ["import", str(source), "--name", "mine", "--check"])
    assert done.exit_code == 0, done.stderr
    shown = [line.split() for line in done.stdout.splitlines()]
    at = next(i for i, line in enumerate(shown) if line[:2] == ["WEIGHTS", "MATRICES"])
    names = [line[0] for line in shown[at + 1 :]]
    assert names == ["float32", "file"], "blocks stay what they are, whatever is made of floats"
    assert shown[at + 2][-1].endswith("%")


def test_quality_of_no_model_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["quality", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("muxctl: reading ended with exit code 1")
    done = CliRunner().invoke(app, ["quality", str(tmp_path), "--text", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "--text" in done.stderr
