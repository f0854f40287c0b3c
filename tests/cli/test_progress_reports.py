"""Progress: bars on a real terminal, plain lines elsewhere."""

import contextlib
import io
import os
import pty
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from muxd.cli.progress import Bars, Lines, Loading, reporter
from muxd.importer.progress import Progress


class Terminal:
    """A pseudo-terminal that is read all the time, as its small buffer would block the writer."""

    def __init__(self) -> None:
        self._main, side = pty.openpty()
        self.stream = os.fdopen(side, "w")
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(self._main, 4096):
                self._shown += part

    def shown(self) -> str:
        """Everything written; nothing can be written afterwards."""
        self.stream.close()
        self._reader.join()
        return self._shown.decode()

    def close(self) -> None:
        self.shown()
        os.close(self._main)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    made = Terminal()
    yield made
    made.close()


def report(progress: Progress) -> None:
    progress.note("Terms [apply] here.")
    progress.start(3 << 20, "smollm2.whl")
    progress.advance(1 << 20)
    progress.advance(2 << 20)
    progress.finish()


def test_lines_for_logs_and_pipes() -> None:
    out = io.StringIO()
    with reporter(out) as progress:
        assert isinstance(progress, Lines)
        report(progress)
    assert out.getvalue() == "Terms [apply] here.\nsmollm2.whl (3.0 MiB) ...\nsmollm2.whl: done\n"


def test_bars_on_a_terminal(terminal: Terminal) -> None:
    with reporter(terminal.stream) as progress:
        assert isinstance(progress, Bars)
        report(progress)
    shown = terminal.shown()
    assert "Terms [apply] here." in shown
    assert "smollm2.whl" in shown
    assert "3.1/3.1 MB" in shown
    assert "\x1b[?25h" in shown  # the cursor is given back


def test_bars_give_the_terminal_back_on_an_error(terminal: Terminal) -> None:
    def fail() -> None:
        with reporter(terminal.stream) as progress:
            progress.start(10, "x")
            raise OSError("network")

    with pytest.raises(OSError, match="network"):
        fail()
    assert terminal.shown().rstrip().endswith("\x1b[?25h")


def load_two(stream: TextIO) -> None:
    with Loading(stream) as loading:
        for done in (1 << 20, 2 << 20):
            loading.report("a", done, 2 << 20)
            loading.report("b", 0, 1 << 20)
        loading.stop()


def test_loading_draws_on_a_terminal(terminal: Terminal) -> None:
    load_two(terminal.stream)
    shown = terminal.shown()
    assert "Loading a" in shown
    assert "Loading b" in shown


def test_loading_is_silent_elsewhere() -> None:
    out = io.StringIO()
    load_two(out)
    assert out.getvalue() == ""
