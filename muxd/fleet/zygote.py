"""The daemon's end of the process that forks workers (``muxd.worker.zygote``): ask, and wait for the answer.

It belongs to no event loop: its calls block, for seconds while torch is being imported, and are made in
threads. A zygote that has ended is replaced at the next fork; the workers that it forked live on.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from muxd.device.cpu import available_cores, worker_env
from muxd.errors import MuxdError
from muxd.link import fds
from muxd.link.exits import UNKNOWN
from muxd.messages import Ended, Fork, Forked, FromZygote, NotForked, Reap, ToZygote

ANSWER_WITHIN = 120.0  # seconds; the first answer comes when torch has been read from the disk


class Child:
    """A forked worker: ``pidfd`` is readable when it has ended; ``close`` it then."""

    def __init__(self, pid: int, pidfd: int, parent: "_Process"):
        self.pid, self.pidfd, self._parent = pid, pidfd, parent

    def reap(self) -> int:
        """How it ended, as ``Popen.returncode``, or ``UNKNOWN``; once, and when it has. Blocks a moment."""
        try:
            answer, _ = self._parent.ask(Reap(self.pid))
        except OSError:
            return UNKNOWN  # init has reaped it: its parent is gone
        return answer.code if isinstance(answer, Ended) else UNKNOWN

    def close(self) -> None:
        os.close(self.pidfd)


class Zygote:
    """Forks workers. ``kernels``: they will run kernels on a GPU. Safe to use from several threads."""

    def __init__(self, *, kernels: bool = False):
        self._kernels = kernels
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def start(self) -> None:
        """Begin to import, and do not wait. Raises OSError when the system refuses a process."""
        with self._lock:
            if self._process is not None and self._process.ended:
                self._process.close()
                self._process = None
            if self._process is None:
                self._process = _Process(kernels=self._kernels)

    @property
    def pid(self) -> int:
        """Of the process there is, 0 without any."""
        process = self._process
        return 0 if process is None or process.ended else process.pid

    def fork(self, environment: Mapping[str, str], control: socket.socket) -> Child:
        """A worker at the other end of ``control``, which the caller keeps and closes.

        ``environment`` is beyond the daemon's own. Raises OSError when the system refuses, or none answers.
        """
        try:
            return self._fork(environment, control)
        except ConnectionError:
            # It ended, perhaps in the middle: a child that nobody was told of sees its control socket close.
            return self._fork(environment, control)

    def _fork(self, environment: Mapping[str, str], control: socket.socket) -> Child:
        self.start()
        process = self._process
        assert process is not None
        answer, passed = process.ask(Fork(dict(environment)), [control.fileno()])
        if isinstance(answer, Forked):
            return Child(answer.pid, passed[0], process)
        assert isinstance(answer, NotForked)
        raise OSError(answer.errno, answer.reason)

    def close(self) -> None:
        """End the process. Workers that still run stay, and their ends are ``UNKNOWN``."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None


class _Process:
    def __init__(self, *, kernels: bool):
        self._lock = threading.Lock()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_WITHIN)
        lifeline, self._held = os.pipe()
        given = [theirs.fileno(), lifeline]
        try:
            self._popen = subprocess.Popen(
                # -P: a folder called "models" where the user stands must not be imported
                [sys.executable, "-P", "-m", "muxd.worker.zygote", "--fd", str(given[0]),
                 "--lifeline", str(given[1]), *(["--kernels"] if kernels else [])],
                # One thread: numpy's pool would start its own. OpenMP reads the rest when torch is imported.
                pass_fds=given, stdin=subprocess.DEVNULL, env={**os.environ, **worker_env(available_cores())},
            )  # fmt: skip
        except BaseException:
            self._sock.close()
            os.close(self._held)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self.pid = self._popen.pid

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def ask(self, request: ToZygote, passed: Sequence[int] = ()) -> tuple[FromZygote, list[int]]:
        """Raises OSError, ConnectionError where it has ended."""
        with self._lock:
            try:
                if self.ended:
                    raise EOFError  # and perhaps closed, by who was first to see it
                fds.send(self._sock, request, passed)
                answer, received = fds.receive(self._sock, FromZygote)
                return answer, received
            except (EOFError, ConnectionError):
                self._end()
                raise ConnectionResetError("the process that forks workers ended") from None
            except (TimeoutError, MuxdError) as error:
                self._end()  # what it says later would be taken for the next answer
                raise OSError(0, f"the process that forks workers gave no good answer: {error}") from None

    def _end(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        self._end()
        with self._lock:
            self._sock.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
