"""Files beside the configuration add models and nothing else; what is wrong is named by the file it is in."""

import logging
from pathlib import Path

import pytest

from muxd.config_load import load
from muxd.errors import ConfigError


def model(name: str, more: str = "") -> str:
    return f'[[model]]\nname = "{name}"\npath = "m/{name}"\n{more}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "muxd.toml"
    file.write_text(model("a", 'aliases = ["first"]'))
    (tmp_path / "muxd.d").mkdir()
    return file


def drop(file: Path, name: str, text: str) -> Path:
    path = file.with_name("muxd.d") / name
    path.write_text(text)
    return path


def test_models_come_in_the_order_of_the_files_names_after_the_configurations_own(file: Path) -> None:
    drop(file, "c.toml", model("c") + model("d"))
    drop(file, "b.toml", model("b"))
    for name in (".b.toml.new", ".hidden.toml", "e.toml.bak", "README"):
        drop(file, name, model("e"))
    models = load(file, env={}).model
    assert [one.name for one in models] == ["a", "b", "c", "d"]
    assert models[1].path == str(file.parent / "muxd.d" / "m" / "b")  # from the file that names it


def test_without_a_folder_there_are_none(file: Path) -> None:
    (file.parent / "muxd.d").rmdir()
    assert [one.name for one in load(file, env={}).model] == ["a"]
    (file.parent / "muxd.d").write_text("no folder")
    assert [one.name for one in load(file, env={}).model] == ["a"]


@pytest.mark.parametrize("name", ["a", "first"])
def test_the_configurations_own_model_wins_and_the_log_names_both_files(
    file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = drop(file, "x.toml", model(name, 'dtype = "float16"') + model("b"))
    with caplog.at_level(logging.ERROR, "muxd.config"):
        models = load(file, env={}).model
    assert [(one.name, one.dtype) for one in models] == [("a", "auto"), ("b", "auto")]
    assert [word for word in (str(path), f"({name})", str(file)) if word not in caplog.text] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", ("TOML",)),
        ("[server]\nport = 1\n", ("server", "[[model]] tables only")),
        (model("b", "sher = 1"), ("model[0]", "`sher`")),
        (model("b", 'dtype = "int3"'), ("model[0].dtype", "float32")),
        (model("b", "share = 101"), ("model.share", "101")),
        (model("b", 'quota = { min = "100%" }') + model("c", 'quota = { min = "1%" }'), ("quota.min",)),
        (model("b", 'device = "cpu:7"'), ("model.device", "cpu:7")),
    ],
)
def test_what_is_wrong_is_named_by_the_drop_ins_file(file: Path, text: str, words: tuple[str, ...]) -> None:
    path = drop(file, "x.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(file, env={})
    assert [word for word in (str(path), *words) if word not in caught.value.message] == []
