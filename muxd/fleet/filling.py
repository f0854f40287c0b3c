"""The daemon's end of the process that reads a model's weights (``fleet.filler``)."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable

from muxd.device.base import Piece
from muxd.device.behind import only_idle, put_back
from muxd.errors import ModelFolderError, MuxdError
from muxd.fleet.filler import Filled, Filling, Unfilled, decode, packed
from muxd.link import fds
from muxd.link.exits import explain
from muxd.models.weights import WeightPlan
from muxd.text.work import LENGTH


async def filled_piece(
    plan: WeightPlan, region: Piece, progress: Callable[[int], None], streams: Callable[[], bool]
) -> None:
    """Have ``region`` filled; ``progress`` hears how many bytes are. Cancelled, it leaves a region half
    filled, and no process.

    It gives way from when there are ``streams``: before, what else the machine does would keep it waiting,
    and it would spare nobody.

    Raises ModelFolderError, MuxdError where device memory cannot be filled or the process is lost, OSError
    where the system refuses one.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    lifeline, held = os.pipe()
    try:
        try:
            process = await _spawn(theirs.fileno(), lifeline)
            behind = streams()
            if behind:
                put_back(process.pid)
        finally:
            theirs.close()
            os.close(lifeline)

        def heard(nbytes: int) -> None:
            nonlocal behind
            if not behind and streams():
                put_back(process.pid)
                behind = True
            progress(nbytes)

        try:
            with only_idle([process.pid] if behind else []):
                await _watched(process, ours, Filling(packed(plan), region.place), region.fd, heard)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    finally:
        ours.close()
        os.close(held)


async def _spawn(sock: int, lifeline: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        # -P: a folder called "muxd" where the user stands must not be imported
        *(sys.executable, "-P", "-m", "muxd.fleet.filler", "--fd", str(sock), "--lifeline", str(lifeline)),
        pass_fds=[sock, lifeline],
        stdin=asyncio.subprocess.DEVNULL,
    )


async def _watched(
    process: asyncio.subprocess.Process,
    sock: socket.socket,
    order: Filling,
    region: int,
    progress: Callable[[int], None],
) -> None:
    try:
        await asyncio.to_thread(fds.send, sock, order, [region])
        reader, writer = await asyncio.open_unix_connection(sock=sock)
    except OSError:
        raise await _lost(process) from None
    try:
        while True:
            (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            match decode(await reader.readexactly(size)):
                case Unfilled(message, folder):
                    raise ModelFolderError(message) if folder else MuxdError(message)
                case Filled(nbytes, done):
                    progress(nbytes)
                    if done:
                        return
    except (OSError, asyncio.IncompleteReadError):
        raise await _lost(process) from None
    finally:
        writer.transport.abort()


async def _lost(process: asyncio.subprocess.Process) -> MuxdError:
    how = explain(await process.wait())
    return MuxdError(f"the process that reads its weights was lost: it {how}; muxd's log may say more")
