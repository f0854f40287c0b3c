"""docs/configuration.md is what `.ci/configuration.py` makes of the settings and the example."""

import configuration
import pytest
from msgspec.structs import replace

from muxd.config import Config, ModelConfig
from muxd.fleet import reload

EXAMPLE = configuration.EXAMPLE.read_text()


def test_the_page_is_what_make_docs_writes() -> None:
    assert configuration.PAGE.read_text() == configuration.page(), "run `make docs`"


def test_a_setting_without_a_comment_is_told() -> None:
    with pytest.raises(ValueError, match="no comment"):
        configuration.meanings("[server]\n\n# port = 8000\n")


def test_what_a_value_means_comes_after_the_first_sentence() -> None:
    comment = "Longest answer. It is cut there, and more is in no table. 0: what fits. At least 0."
    assert configuration.said(comment) == "Longest answer. 0: what fits. At least 0."
    assert '"temporal": one batch' in configuration.meanings(EXAMPLE)["scheduler", "policy"]


def test_what_a_reload_does_is_asked_of_the_reload() -> None:
    """Not of a list of its own: the same keys, changed for real."""
    server = Config().server
    assert reload.settings(Config(), Config(server=type(server)(log_level="debug")), "f")
    assert configuration.reloaded("server", "log_level") == "yes"
    old, more = ModelConfig("m", "/m"), {"share": 20, "device": "cpu:1", "dtype": "float32"}
    for key, value in more.items():
        (edit,) = reload.edits([old], [replace(old, **{key: value})])
        assert edit.what == reload.changes_of_a_model(key)
    said = {key: configuration.reloaded("model", key) for key in more}
    assert said == {"share": "yes", "device": "moves", "dtype": "loaded anew"}
