"""Progress: bars on a real terminal, plain lines elsewhere."""

import io
import os
import pty
from collections.abc import Callable

import pytest

from muxd.cli.progress import Bars, Lines, Loading, reporter
from muxd.importer.progress import Progress


def on_terminal(work: Callable[[], None], stream: io.TextIOWrapper, main: int) -> str:
    """What a terminal shows while ``work`` writes to ``stream``."""
    work()
    stream.flush()
    return os.read(main, 1 << 16).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    main, side = pty.openpty()
    with os.fdopen(side, "w") as stream:
        yield stream, main
    os.close(main)


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


def test_bars_on_a_terminal(terminal: tuple[io.TextIOWrapper, int]) -> None:
    stream, main = terminal

    def work() -> None:
        with reporter(stream) as progress:
            assert isinstance(progress, Bars)
            report(progress)

    shown = on_terminal(work, stream, main)
    assert "Terms [apply] here." in shown
    assert "smollm2.whl" in shown
    assert "3.1/3.1 MB" in shown
    assert "\x1b[?25h" in shown  # the cursor is given back


def test_bars_give_the_terminal_back_on_an_error(terminal: tuple[io.TextIOWrapper, int]) -> None:
    stream, main = terminal

    def work() -> None:
        with pytest.raises(OSError, match="network"), reporter(stream) as progress:
            progress.start(10, "x")
            raise OSError("network")

    assert on_terminal(work, stream, main).rstrip().endswith("\x1b[?25h")


def test_loading_draws_on_a_terminal_and_is_silent_elsewhere(terminal: tuple[io.TextIOWrapper, int]) -> None:
    stream, main = terminal

    def work(out: io.TextIOBase) -> None:
        with Loading(out) as loading:  # type: ignore[arg-type]
            for done in (1 << 20, 2 << 20):
                loading.report("a", done, 2 << 20)
                loading.report("b", 0, 1 << 20)
            loading.stop()

    shown = on_terminal(lambda: work(stream), stream, main)
    assert "Loading a" in shown
    assert "Loading b" in shown
    quiet = io.StringIO()
    work(quiet)
    assert quiet.getvalue() == ""
