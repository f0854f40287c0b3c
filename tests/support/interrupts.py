"""SIGINT and SIGTERM end a run of the tests at once: what it has started is killed, then fixtures clean up.

Without the first a fixture would wait for a daemon, which waits for a client, which is a thread of ours.
The system may give a signal to any thread, and Python's handler runs in the main one, which a lock keeps
asleep: a thread of ours sends it on to that one.
"""

import os
import signal
import threading
import time
from types import FrameType

from support import leaks

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 10.0  # seconds in which further signals do not disturb the cleaning up
_workers = False
_asked = 0.0  # on the monotonic clock
_wakeups: tuple[int, int] | None = None  # a pipe: numbers of signals that have come


def install(*, workers: bool | None = None) -> None:
    """Before every test: who takes the signals for a while puts back the system's way. ``workers``: the
    tests run in processes of pytest-xdist, which end their own."""
    global _workers
    _workers = _workers if workers is None else workers
    for number in _SIGNALS:
        if signal.getsignal(number) is not _interrupt:
            signal.signal(number, _interrupt)
    _hear()


def _hear() -> None:
    """Event loops of tests take the wakeup descriptor for theirs, and leave none."""
    global _wakeups
    if _wakeups is None:
        _wakeups = os.pipe()
        os.set_blocking(_wakeups[1], False)
        threading.Thread(target=_send_on, args=(_wakeups[0],), name="interrupts", daemon=True).start()
    signal.set_wakeup_fd(_wakeups[1], warn_on_full_buffer=False)


def _send_on(heard: int) -> None:
    main, ours = threading.main_thread().ident, False
    assert main is not None
    while number := os.read(heard, 1):
        ours = not ours and signal.getsignal(number[0]) is _interrupt  # what we send on is heard once more
        if ours:
            signal.pthread_kill(main, number[0])


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
