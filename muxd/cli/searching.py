"""How long a search goes on: until its time is over or somebody has enough; how far it is, on stderr."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from types import FrameType

from muxd.cli.progress import counting
from muxd.placement.search import Enough


class Patience:
    """``seconds``: of each search. ``stopped``: somebody pressed Ctrl-C."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.stopped = False

    def search(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A bar of ``total`` steps. Yields what is told of them: raises Enough when it is time to end."""
        return self._shown(label, total, self.seconds)

    def work(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """The same for what has no time of its own: only Ctrl-C ends it."""
        return self._shown(label, total, inf)

    @contextmanager
    def _shown(self, label: str, total: int, seconds: float) -> Iterator[Callable[[int], None]]:
        due = time.monotonic() + seconds
        say(f"{label} ...")
        with counting(label, total) as advance:

            def step(steps: int) -> None:
                if steps:
                    advance(steps)
                if self.stopped or time.monotonic() > due:
                    raise Enough

            yield step


def say(text: str) -> None:
    """In plain lines where there is no terminal to show a bar."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def patience(seconds: float) -> Iterator[Patience]:
    """While it lasts, the first Ctrl-C is noted and ends what goes on; the second ends the program."""
    found = Patience(seconds)

    def stop(number: int, frame: FrameType | None) -> None:
        found.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
