"""Work that gives way: what loads a model runs behind the streams of others where cores are short."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_NICE = 10  # a tenth of what a stream's threads get of a core that both want
_PATIENCE = 5.0  # seconds for which small work waits for cores that nobody wants

T = TypeVar("T")


def put_back(pid: int, by: int = _NICE) -> None:
    """A process is behind everybody from now on, and so is what it starts then: one that has just been
    started from its first import on, and imports are half a second's work. Threads that it has already stay
    where they are. Nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + by)


def stand_back() -> None:
    """This thread, and what it starts, is behind everybody from now on, and can never get back to where it
    was: Linux keeps both by the thread."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice + _NICE)


def aside(work: Callable[[], T]) -> T:
    """The result of ``work``, done in a thread that stands back; the caller keeps its place."""
    with ThreadPoolExecutor(1, "behind", initializer=stand_back) as thread:
        return thread.submit(work).result()


@contextlib.contextmanager
def only_idle(pids: Iterable[int], patience: float = _PATIENCE) -> Iterator[None]:
    """Meanwhile these processes run only where a core would be idle, as in ``IdleThread``, but for
    ``patience`` seconds at most: on a machine without such a core they would never end. Inside an event loop.
    Nothing where the system would not let them come back."""
    held = list(pids)
    if not held or not may_come_back():
        yield
        return
    _schedule(held, os.SCHED_IDLE)
    over = asyncio.get_running_loop().call_later(patience, _schedule, held, os.SCHED_OTHER)
    try:
        yield
    finally:
        over.cancel()
        _schedule(held, os.SCHED_OTHER)


@cache
def may_come_back() -> bool:
    """Whether a thread may leave SCHED_IDLE again: with CAP_SYS_NICE, or where RLIMIT_NICE permits the nice
    value it has. Most users' shells do not; muxd's system service does."""

    def there_and_back() -> bool:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(1, "may_come_back") as thread:
        return thread.submit(there_and_back).result()


def _schedule(pids: Iterable[int], policy: int) -> None:
    """All threads of these processes, also those that they start meanwhile."""
    for pid in pids:
        while _changed(pid, policy):
            pass


def _changed(pid: int, policy: int) -> bool:
    """Whether one of its threads had another. Threads may end meanwhile, and so may it."""
    changed = False
    with contextlib.suppress(FileNotFoundError):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
                    changed = True
    return changed


class IdleThread:
    """For pieces of work that last some milliseconds each. For ``patience`` seconds they run only where a
    core would be idle (SCHED_IDLE: a thread that wakes finds such a core free, and takes it at once). Longer
    work goes on in the caller's place: on a machine without an idle core it would never end."""

    def __init__(self, patience: float = _PATIENCE):
        self._until = time.monotonic() + patience
        self._thread = ThreadPoolExecutor(1, "idle_thread", initializer=_idle)

    def run(self, work: Callable[[], T]) -> T:
        """The result of a piece."""
        if time.monotonic() < self._until:
            return self._thread.submit(work).result()
        return work()

    def close(self) -> None:
        """No more pieces."""
        self._thread.shutdown()


def _idle() -> None:
    """Of this thread alone; a kernel that refuses leaves it as it is."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
