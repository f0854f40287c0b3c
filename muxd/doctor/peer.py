"""Helper processes of the probes: spawned in a role, talked to over a socketpair, gone with the probe.

``Peer`` is the probe's side, ``python -m muxd.doctor.roles`` the other. Messages and descriptors travel as
between daemon and workers (``muxd.link.fds``).
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

from msgspec import Struct, field

from muxd.errors import MuxdError
from muxd.link import fds


class Ask(Struct, frozen=True):
    """What a role is to do next; which numbers it needs depends on the role."""

    nbytes: int = 0
    value: int = 0


class Answer(Struct, frozen=True):
    """What it saw; ``error`` is a sentence if it could not."""

    numbers: dict[str, float] = field(default_factory=dict)
    sets: list[list[int]] = field(default_factory=list)
    error: str = ""


class PeerFailed(MuxdError):
    """A helper process ended or could not do its part; the message says which and why."""

    code = "doctor_peer"


class Peer:
    """A spawned process in ``role``. A context manager; leaving it ends the process."""

    def __init__(self, role: str, env: Mapping[str, str] | None = None):
        self.role = role
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "muxd.doctor.roles", role, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
            )
        finally:
            theirs.close()
        self._socket = ours
        self.pid = self._process.pid

    def ask(self, question: Ask, descriptors: Sequence[int] = ()) -> tuple[Answer, list[int]]:
        """Its answer, and descriptors that came with it. Raises PeerFailed."""
        try:
            fds.send(self._socket, question, descriptors)
            answer, received = fds.receive(self._socket, Answer)
        except (EOFError, OSError) as error:
            raise PeerFailed(f"the {self.role} process ended: {self._how() or error}") from None
        if answer.error:
            raise PeerFailed(f"the {self.role} process: {answer.error}")
        return answer, received

    def kill(self) -> None:
        """As the kernel would: without a word."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _how(self) -> str:
        code = self._process.wait()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
