"""A spawned process never outlives its daemon: parent-death signal, a look at the parent, and the death pipe.

Called first thing by every process the daemon spawns, before long imports (seconds in which it may die).
Linux only.
"""

import ctypes
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable

from muxd.link.exits import Exit

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SETTLE_GRACE = 20.0  # seconds that work on a device gets to end when the daemon is gone
_libc = ctypes.CDLL(None, use_errno=True)

_orphaned = threading.Event()
_gentle = threading.Event()
_grace = _SETTLE_GRACE


def hold(sock: socket.socket) -> None:
    """Tie this process's life to the daemon at the other end of ``sock``.

    SIGKILL from the kernel when the daemon dies (strictly: when the *thread* that spawned us ends, so the
    supervisor must spawn from its main thread), and an exit by ourselves when the socket closes, which
    also covers a daemon that only dropped us. Ctrl-C is the daemon's to handle.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would be inherited through exec
    # A daemon that died before the line above sends no signal any more; the socket knows who made it.
    maker = _maker(sock)
    if maker > 0 and os.getppid() != maker:
        os._exit(Exit.ORPHANED)
    threading.Thread(target=_watch, args=(sock.fileno(),), name="lifeline", daemon=True).start()


def set_title(model: str) -> None:
    """Show ``muxd:<model>`` in ``ps`` and ``top`` (the kernel keeps 15 bytes)."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(f"muxd:{model}".encode()[:15]))


def settle_first(settle: Callable[[], object], grace: float = _SETTLE_GRACE) -> None:
    """From now on end only after ``settle``, which waits for the device: under MPS a process that is killed
    with work in flight leaves all clients in an undefined state.

    From the main thread, before the device is used. SIGTERM, which the kernel sends now when the daemon
    dies, is handled between two calls of Python, so nothing new is queued. A device that never comes to rest
    is given up after ``grace`` seconds once the daemon is gone; while it lives, ending us is its part.
    """
    global _grace
    _grace = grace
    maker, begun = os.getppid(), False

    def end(number: int, frame: object) -> None:
        # The kernel's signal and the socket's end both tell, the second while the first is handled: a lock
        # here, also that of an Event, would wait for itself.
        nonlocal begun
        if begun:
            return
        begun = True
        orphaned = _orphaned.is_set() or os.getppid() != maker
        if orphaned:
            threading.Thread(target=_give_up, name="give-up", daemon=True).start()
        settle()
        if orphaned:
            os._exit(Exit.ORPHANED)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    _gentle.set()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _give_up() -> None:
    threading.Event().wait(_grace)
    os._exit(Exit.ORPHANED)


def _watch(fd: int) -> None:
    """Wait for the hang-up alone: what is on the socket is for the main thread to read."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    while not any(events for _, events in poll.poll()):
        pass
    if _gentle.is_set():
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        _give_up()  # the main thread may never come to its handler
    os._exit(Exit.ORPHANED)


def _maker(sock: socket.socket) -> int:
    """Process id of whoever made the socketpair; 0 where it is not visible (another pid namespace)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")
