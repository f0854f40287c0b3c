"""A real worker process under a real daemon end: the supervisor's part, for tests of one worker."""

import asyncio
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from muxd.device.cpu import Cpu, worker_env
from muxd.fleet.zygote import Zygote
from muxd.link import fds
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.messages import FromWorker, Setup, ToWorker
from muxd.models.spec import read_spec
from muxd.models.weights import fill, plan
from muxd.pool.arena import Arena

NAME = "tiny/both/1"
COMMAND = [sys.executable, "-P", "-m", "muxd.worker", "--fd"]


class Daemon:
    """Pool, weights and link for one model folder; made and closed inside a running loop."""

    def __init__(self, folder: Path, rows: int = 16):
        spec = read_spec(folder)
        device = Cpu(1)
        self.arena = Arena(device, rows * spec.blocks_per_row * 8192, 8192)
        self.arena.ledger.add_model("tiny", spec.blocks_per_row, rows)
        layout = plan(folder, spec, "float32")
        self.weights = device.allocate(layout.bytes, "weights")
        fill(layout, self.weights.writer())
        self.events: asyncio.Queue[FromWorker | str] = asyncio.Queue()
        self.lifeline, self._held = os.pipe()
        self._directory = private_directory()
        self.link = DaemonEnd(self._directory)
        self.link.announce(NAME, self)
        self.setup = Setup(
            worker=NAME, model="tiny", folder=str(folder), dtype="float32", link=self.link.endpoint,
            device="cpu", pool_bytes=self.arena.nbytes, block_bytes=8192, max_rows=rows,
            weights_bytes=layout.bytes, tensors=layout.tensors, cores=1, max_context=512,
        )  # fmt: skip

    def on_message(self, message: FromWorker) -> None:
        self.events.put_nowait(message)

    def on_lost(self, reason: str) -> None:
        self.events.put_nowait(reason)

    @property
    def fds(self) -> list[int]:
        return [self.arena.fds[0], self.weights.fd, self.lifeline]

    async def next(self) -> FromWorker | str:
        return await self.events.get()  # one that never comes is the end of the test's own time

    async def call(self, command: ToWorker) -> FromWorker | str:
        self.link.send(NAME, command)
        return await self.next()

    def hang_up(self) -> None:
        """As if it had died, with somebody else still holding the worker's socket."""
        os.close(self._held)
        self._held = -1

    def close(self) -> None:
        if self._held >= 0:
            self.hang_up()
        os.close(self.lifeline)
        self.link.close()
        self.arena.close()
        self.weights.close()
        # Another daemon that starts now may be quicker: nobody listens there any more.
        shutil.rmtree(self._directory, ignore_errors=True)


class Worker:
    """One started by hand: the process, its end of the socketpair and, once it has ended, what it wrote to
    stderr."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **worker_env(1)},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.pid = self.process.pid

    def hand_over(self, daemon: Daemon, **changes: Any) -> None:
        """Set-up and descriptors, as the supervisor sends them."""
        fds.send(self.sock, msgspec.structs.replace(daemon.setup, **changes), daemon.fds)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 240) -> tuple[int, str]:
        """Exit code and stderr; raises TimeoutExpired if it does not end."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors

    def close(self) -> None:
        """Whatever state it is in: gone and reaped."""
        self.process.kill()
        self.process.communicate()
        self.sock.close()


class Forked:
    """One that a zygote has forked; it writes to our stderr."""

    def __init__(self, zygote: Zygote, **environment: str):
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self.child = zygote.fork({**worker_env(1), **environment}, theirs)
            except OSError:
                self.sock.close()
                raise
        self.pid = self.child.pid
        self._code: int | None = None

    def hand_over(self, daemon: Daemon, **changes: Any) -> None:
        """As a ``Worker``'s."""
        fds.send(self.sock, msgspec.structs.replace(daemon.setup, **changes), daemon.fds)

    @property
    def runs(self) -> bool:
        return self._code is None and not select.select([self.child.pidfd], [], [], 0)[0]

    def send_signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self.child.pidfd, number)

    def ended(self, seconds: float = 240) -> tuple[int, str]:
        """Exit code, as of a ``Worker``."""
        if self._code is None:
            assert select.select([self.child.pidfd], [], [], seconds)[0], f"{self.pid} does not end"
            self._code = self.child.reap()
            self.child.close()
        return self._code, ""

    def close(self) -> None:
        if self.runs:
            self.send_signal(signal.SIGKILL)
        self.ended()
        self.sock.close()
