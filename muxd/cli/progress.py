"""How far a long job is, on standard error: a bar for people at a terminal, plain lines elsewhere.

Implements the importer's ``Progress`` protocol (muxd.importer.progress).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from muxd.importer.progress import Progress as Reports


class Bars:
    """One bar per task. A context manager: leaving it gives the terminal back, also on an error."""

    def __init__(self, stream: TextIO):
        self._console = Console(file=stream)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=self._console)
        self._task = self._bars.add_task("", total=0, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._bars.stop()

    def start(self, total: int, label: str) -> None:
        self._task = self._bars.add_task(label, total=total)

    def advance(self, amount: int) -> None:
        self._bars.advance(self._task, amount)

    def finish(self) -> None:
        self._bars.update(self._task, completed=self._bars.tasks[self._task].total)

    def note(self, text: str) -> None:
        # Not markup: a licence text may contain brackets.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Lines:
    """One line when a task starts and one when it ends: for logs, CI and pipes."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._label = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        pass

    def start(self, total: int, label: str) -> None:
        self._label = label
        self.note(f"{label} ({total / (1 << 20):.1f} MiB) ...")

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        self.note(f"{self._label}: done")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Loading:
    """One bar per model while weights are read, several at once; only at a terminal, as the log says the
    same in words. A context manager; ``stop`` may come earlier. Reports may come from any thread."""

    def __init__(self, stream: TextIO | None = None):
        out = stream or sys.stderr
        columns = (TextColumn("Loading {task.description}"), BarColumn(), DownloadColumn())
        self._bars = Progress(*columns, console=Console(file=out), transient=True, disable=not out.isatty())
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    def report(self, model: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of the model's weights are there."""
        if model not in self._tasks:
            self._tasks[model] = self._bars.add_task(model, total=total)
        self._bars.update(self._tasks[model], completed=done)

    def stop(self) -> None:
        """Remove the bars. Idempotent."""
        self._bars.stop()


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts to ``total``, gone at the end; only at a terminal. Yields the step to call."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=quiet) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)


def reporter(stream: TextIO | None = None) -> Bars | Lines:
    """What fits ``stream`` (standard error if not given)."""
    out = stream or sys.stderr
    return Bars(out) if out.isatty() else Lines(out)


# mypy proves here that both speak the importer's protocol.
_: type[Reports] = Bars
_ = Lines
