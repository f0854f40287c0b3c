"""SIGINT and SIGTERM end a run of the tests at once: what it has started is killed, then fixtures clean up.

Without the first a fixture would wait for a daemon, which waits for a client, which is a thread of ours.
"""

import os
import signal
import time
from types import FrameType

from support import leaks

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 10.0  # seconds in which further signals do not disturb the cleaning up
_workers = False
_asked = 0.0  # on the monotonic clock


def install(*, workers: bool | None = None) -> None:
    """Before every test: who takes the signals for a while puts back the system's way. ``workers``: the
    tests run in processes of pytest-xdist, which end their own."""
    global _workers
    _workers = _workers if workers is None else workers
    for number in _SIGNALS:
        if signal.getsignal(number) is not _interrupt:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    if os.getpid() != leaks.OURSELVES:  # a fork of ours
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _asked and time.monotonic() - _asked < _AGAIN:
        return
    _asked = time.monotonic()
    if _workers:
        leaks.kill(leaks.children(), signal.SIGTERM)
    else:
        leaks.end_all()
    raise KeyboardInterrupt(signal.Signals(number).name)
