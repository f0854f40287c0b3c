"""One worker process: forked by the zygote, handed its memory, watched until it is gone.

Its end is told by a pidfd. The daemon holds one end of each of its lifelines: of a pipe, at whose end the
kernel ends the worker, and of the socketpair, at whose end it ends itself.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping

from muxd.fleet.zygote import Child, Zygote
from muxd.link.fds import send
from muxd.messages import MapPool, Setup


class WorkerProcess:
    """Made by ``spawn``. ``wait`` returns the exit code (negative: the signal)."""

    def __init__(self, child: Child, control: socket.socket, lifeline: int, end_work: Callable[[int], None]):
        self._child, self._control, self._lifeline = child, control, lifeline
        self._end_work = end_work
        self.pid = child.pid
        self._over = asyncio.create_task(self._reap())

    @classmethod
    async def spawn(
        cls,
        zygote: Zygote,
        setup: Setup,
        fds: list[int],
        env: Mapping[str, str],
        end_work: Callable[[int], None],
    ) -> "WorkerProcess":
        """Fork a worker and hand it ``setup`` with ``[pool, weights]``. Raises OSError.

        ``end_work``: ``device.base.Device.end_work``, called in a thread before a kill.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                child = await asyncio.to_thread(zygote.fork, env, theirs)
            except BaseException:
                ours.close()
                raise
        reading, writing = os.pipe()
        worker = cls(child, ours, writing, end_work)
        try:
            with contextlib.suppress(OSError):  # it died already; wait() will say how
                await asyncio.to_thread(send, ours, setup, [*fds, reading])
        finally:
            os.close(reading)
        return worker

    def give(self, message: MapPool, fd: int) -> None:
        """A descriptor for a worker that runs; silent when it has ended."""
        with contextlib.suppress(OSError):
            send(self._control, message, [fd])

    @property
    def gone(self) -> bool:
        """Whether it has ended, as the system has it: before ``wait`` returns."""
        return self._over.done() or bool(select.select([self._child.pidfd], [], [], 0)[0])

    async def wait(self) -> int:
        return await asyncio.shield(self._over)

    async def stop(self, grace: float) -> None:
        """Let it end by itself within ``grace`` seconds, then kill it."""
        try:
            await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            await self.kill()
            await self.wait()

    async def kill(self) -> None:
        """End what it has running on the device, then the process."""
        if not self._over.done():
            await asyncio.to_thread(self._end_work, self.pid)
        if not self._over.done():
            with contextlib.suppress(ProcessLookupError):  # it has ended, and is being reaped
                signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)

    async def _reap(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._child.pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._child.pidfd)
        code = await asyncio.to_thread(self._child.reap)
        self._child.close()
        self._control.close()
        os.close(self._lifeline)
        return code
