"""One worker process: spawned, handed its memory, watched until it is gone.

Spawned and exec'd, never forked. The parent's end of the socketpair is the worker's death pipe: when this
object is closed, or the daemon dies in any way, the worker reads end-of-file and exits.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping

from muxd.link.fds import send
from muxd.messages import MapPool, Setup


class WorkerProcess:
    """Made by ``spawn``. ``wait`` returns the exit code (negative: the signal)."""

    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, end_work: Callable[[int], None]
    ):
        self._process = process
        self._control = control
        self._end_work = end_work
        self.pid = process.pid

    @classmethod
    async def spawn(
        cls, setup: Setup, fds: list[int], env: Mapping[str, str], end_work: Callable[[int], None]
    ) -> "WorkerProcess":
        """Start ``python -m muxd.worker`` and hand it ``setup`` with ``[pool, weights]``.

        ``end_work``: ``device.base.Device.end_work``, called in a thread before a kill.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: a folder called "models" where the user stands must not be imported
                *(sys.executable, "-P", "-m", "muxd.worker", "--fd", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **env},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = cls(process, ours, end_work)
        with contextlib.suppress(OSError):  # it died already; wait() will say how
            await asyncio.to_thread(send, ours, setup, fds)
        return worker

    def give(self, message: MapPool, fd: int) -> None:
        """A descriptor for a worker that runs; silent when it has ended."""
        with contextlib.suppress(OSError):
            send(self._control, message, [fd])

    async def wait(self) -> int:
        code = await self._process.wait()
        self._control.close()
        return code

    async def stop(self, grace: float) -> None:
        """Let it end by itself within ``grace`` seconds, then kill it."""
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            await self.kill()
            await self._process.wait()
        self._control.close()

    async def kill(self) -> None:
        """End what it has running on the device, then the process."""
        if self._process.returncode is None:
            await asyncio.to_thread(self._end_work, self.pid)
        if self._process.returncode is None:
            self._process.kill()
