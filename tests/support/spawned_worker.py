"""A real worker process under a real daemon end: the supervisor's part, for tests of one worker."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from muxd.device.cpu import Cpu, worker_env
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
        fill(layout, self.weights.writer(), lambda done: None)
        self.events: asyncio.Queue[FromWorker | str] = asyncio.Queue()
        self._directory = private_directory()
        self.link = DaemonEnd(self._directory, self._put, self._put)
        self.link.announce(NAME)
        self.setup = Setup(
            worker=NAME, model="tiny", folder=str(folder), dtype="float32", link=self.link.endpoint,
            device="cpu", pool_bytes=self.arena.nbytes, block_bytes=8192, max_rows=rows,
            weights_bytes=layout.bytes, tensors=layout.tensors, cores=1, max_context=512,
        )  # fmt: skip

    def _put(self, worker: str, event: FromWorker | str) -> None:
        assert worker == NAME
        self.events.put_nowait(event)

    @property
    def fds(self) -> list[int]:
        return [self.arena.fd, self.weights.fd]

    async def next(self) -> FromWorker | str:
        return await asyncio.wait_for(self.events.get(), 60)

    async def call(self, command: ToWorker) -> FromWorker | str:
        self.link.send(NAME, command)
        return await self.next()

    def close(self) -> None:
        self.link.close()
        self.arena.close()
        self.weights.close()
        shutil.rmtree(self._directory)


class Worker:
    """The process, its end of the socketpair and, once it has ended, what it wrote to stderr."""

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

    def hand_over(self, daemon: Daemon, **changes: Any) -> None:
        """Set-up and descriptors, as the supervisor sends them."""
        fds.send(self.sock, msgspec.structs.replace(daemon.setup, **changes), daemon.fds)

    def ended(self, seconds: float = 60) -> tuple[int, str]:
        """Exit code and stderr; raises TimeoutExpired if it does not end."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors

    def close(self) -> None:
        """Whatever state it is in: gone and reaped."""
        self.process.kill()
        self.process.communicate()
        self.sock.close()
