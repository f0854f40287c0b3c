"""The daemon's end of one text process: spawned, given one job after the other, killed when a job must
end."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from muxd.device.behind import put_back
from muxd.text.work import LENGTH, Doing, Reply, Result, Stage, Work, decode_reply, framed

_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # one job, one thread
    "MALLOC_ARENA_MAX": "1",  # arenas of many threads would count against the memory limit
    "RUST_BACKTRACE": "0",
}
_NICE = 5  # behind everybody where processors are short, from its first import on: running streams go first
_START = 120.0  # seconds from spawn to ready, on a machine that is short of everything
_TICKS = os.sysconf("SC_CLK_TCK")
_MOST = 256 << 20  # bytes of a reply


class TextProcess:
    """Made by ``spawn``."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: int,
    ):
        self._process, self._reader, self._writer, self._held = process, reader, writer, held
        self.pid = process.pid

    def seconds(self) -> float:
        """Processor time that it has used; 0 when it has ended."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS

    @classmethod
    async def spawn(cls, module: str, memory: int) -> "TextProcess":
        """Start ``python -m module``, which may take ``memory`` bytes of addresses. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        lifeline, held = os.pipe()
        given = [theirs.fileno(), lifeline]
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: a folder called "muxd" where the user stands must not be imported
                *(sys.executable, "-P", "-m", module, "--fd", str(given[0]), "--lifeline", str(lifeline)),
                *("--memory", str(memory)),
                pass_fds=given,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | _ENV,
            )
            put_back(process.pid, _NICE)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            os.close(held)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        return cls(process, reader, writer, held)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ready(self) -> bool:
        """Until it takes jobs; False: it never will."""
        try:
            async with asyncio.timeout(_START):
                return bool(await self._reader.readexactly(1))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return False

    async def ask(self, work: Work, at: Callable[[Stage], None]) -> Result:
        """``at`` hears how far it is. Raises EOFError when the process has ended."""
        try:
            self._writer.write(framed(work))
            while True:
                (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                if size > _MOST:
                    raise EOFError(f"a reply of {size} bytes")
                reply: Reply = decode_reply(await self._reader.readexactly(size))
                if not isinstance(reply, Doing):
                    return reply
                at(reply.stage)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise EOFError(str(error)) from None

    def kill(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def gone(self) -> None:
        """Until it has ended by itself."""
        await self._process.wait()

    async def end(self) -> None:
        """Kill it, if it lives, and leave nothing."""
        self.kill()
        self._writer.transport.abort()
        await self._process.wait()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
