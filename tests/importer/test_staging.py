"""Folders appear whole or not at all, whatever ends the process that makes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from muxd.errors import ConfigError
from muxd.importer.staging import locked, scratch, staged

_FILLS_FOREVER = """
import signal, sys
from pathlib import Path
from muxd.importer.staging import staged
# A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with staged(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print("filling", flush=True)
    signal.pause()
"""


def start(target: Path) -> "subprocess.Popen[str]":
    """A process that has filled half a folder and goes on for ever."""
    child = subprocess.Popen(
        [sys.executable, "-c", _FILLS_FOREVER, str(target)], stdout=-1, stderr=-1, text=True
    )
    assert child.stdout
    assert child.stdout.readline() == "filling\n"
    return child


def end(child: "subprocess.Popen[str]", how: signal.Signals) -> None:
    child.send_signal(how)
    child.communicate()


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    with staged(tmp_path / "model") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "sub" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def half() -> None:
        with staged(tmp_path / "model") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(error):
        half()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    end(start(tmp_path / "model"), signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_import(tmp_path: Path) -> None:
    end(start(tmp_path / "model"), signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    with staged(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_still_being_filled_is_left_alone(tmp_path: Path) -> None:
    child = start(tmp_path / "model")
    with scratch(tmp_path, "other"):
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in next(tmp_path.iterdir()).iterdir()] == ["half"]
    end(child, signal.SIGKILL)


def test_a_folder_of_another_name_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / ".mine").mkdir()
    (tmp_path / "a.partial-b").mkdir()
    with scratch(tmp_path, "x"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".mine", "a.partial-b"}


def test_a_folder_can_be_made_inside_another_in_the_making(tmp_path: Path) -> None:
    """As `muxctl import --force` does, to swap the folders at the end."""
    with scratch(tmp_path, "room") as room:
        with staged(room / "model") as folder:
            (folder / "file").write_text("x")
        os.rename(room / "model", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_second_of_two_at_once_is_told(tmp_path: Path) -> None:
    def overtaken() -> None:
        with staged(tmp_path / "model"):
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "theirs").write_text("x")

    with pytest.raises(ConfigError, match="made by somebody else"):
        overtaken()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["theirs"]


def test_a_parent_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"cannot write into .*file/models: Not a directory"),
        staged(tmp_path / "file" / "models" / "x"),
    ):
        pass


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with staged(tmp_path / "model"), locked(tmp_path / "lock"):
        pass
    assert os.listdir("/proc/self/fd") == before
