"""A process never outlives its daemon: a pipe that only the daemon writes to, and the end of its socket.

When the daemon dies in any way the pipe hangs up, and the kernel signals the process by itself, even one that
is deep in a computation and holds the interpreter. (The parent-death signal would speak of the zygote, which
may die alone.) A daemon that lives and only drops a process closes the socket. Linux only.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import threading
from collections.abc import Callable

from muxd.link.exits import Exit

_PR_SET_NAME = 15
_SETTLE_GRACE = 20.0  # seconds that work on a device gets to end when the daemon is gone
_libc = ctypes.CDLL(None, use_errno=True)

_orphaned = threading.Event()
_gentle = threading.Event()
_grace = _SETTLE_GRACE
_pipe = -1


def hold(sock: socket.socket) -> None:
    """End by ourselves when the daemon closes its end of ``sock``. Ctrl-C and a terminal that hangs up reach
    the whole group, and are the daemon's to handle; SIGUSR2 means nothing to anybody here."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would be inherited through exec
    threading.Thread(target=_watch, args=(sock.fileno(),), name="lifeline", daemon=True).start()


def tie(pipe: int) -> None:
    """Have the kernel send SIGKILL when the last writer of ``pipe`` is gone. The descriptor stays open."""
    global _pipe
    _pipe = pipe
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if _hung_up():  # before we asked for the signal
        os._exit(Exit.ORPHANED)


def set_title(model: str) -> None:
    """Show ``muxd:<model>`` in ``ps`` and ``top`` (the kernel keeps 15 bytes)."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(f"muxd:{model}".encode()[:15]))


def settle_first(settle: Callable[[], object], grace: float = _SETTLE_GRACE) -> None:
    """From now on end only after ``settle``, which waits for the device: under MPS a process that is killed
    with work in flight leaves all clients in an undefined state.

    From the main thread, before the device is used, after ``tie``. SIGTERM, which the kernel sends now when
    the daemon dies, is handled between two calls of Python, so nothing new is queued. A device that never
    comes to rest is given up after ``grace`` seconds once the daemon is gone; while it lives, ending us is
    its part.
    """
    global _grace
    _grace = grace
    begun = False

    def end(number: int, frame: object) -> None:
        # The kernel's signal and the socket's end both tell, the second while the first is handled: a lock
        # here, also that of an Event, would wait for itself.
        nonlocal begun
        if begun:
            return
        begun = True
        orphaned = _orphaned.is_set() or _hung_up()
        if orphaned:
            threading.Thread(target=_give_up, name="give-up", daemon=True).start()
        settle()
        if orphaned:
            os._exit(Exit.ORPHANED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    _gentle.set()
    fcntl.fcntl(_pipe, fcntl.F_SETSIG, signal.SIGTERM)


def _give_up() -> None:
    threading.Event().wait(_grace)
    os._exit(Exit.ORPHANED)


def _watch(fd: int) -> None:
    """Wait for the hang-up alone: what is on the socket is for the main thread to read."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    while not (told := [events for _, events in poll.poll()]):
        pass
    if told == [select.POLLNVAL]:
        return  # we have closed it ourselves before this thread began: the process ends with another word
    if _gentle.is_set():
        _orphaned.set()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)  # to another thread's care it would wake nobody
        _give_up()  # the main thread may never come to its handler
    os._exit(Exit.ORPHANED)


def _hung_up() -> bool:
    poll = select.poll()
    poll.register(_pipe, 0)  # a hang-up is always told
    return bool(poll.poll(0))


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")
