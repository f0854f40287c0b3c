"""Signs of life of a stream that waits: its status after a while, and comments with its place."""

import asyncio
import random
from collections.abc import Sequence

from aiohttp import web

from muxd.api.context import context
from muxd.api.sse import EventStream
from muxd.engine.request import Request

_SHORTEST = 0.05  # seconds between two looks
_EARLIEST = 0.8  # of its pause: who came in one moment shall not be told in one moment


async def give_signs(
    request: web.Request, out: EventStream, waiting: Sequence[Request], *, comments: bool
) -> None:
    """Until cancelled, or the client is gone. ``waiting``: the sequences of the answer; the last of them
    tells how far it is. Without ``comments`` the status is all."""
    here = context(request)
    early = random.uniform(_EARLIEST, 1.0)
    pause = here.limits.next_sign * early
    await asyncio.sleep(here.limits.first_sign * early)
    try:
        if out.response is None:
            await out.send(_comment(here.serving.ahead(waiting[-1])) if comments else b"")
        while comments:
            left = pause - (here.clock.now() - out.spoke)
            if left > 0:
                await asyncio.sleep(max(left, _SHORTEST))
            else:
                await out.send(_comment(here.serving.ahead(waiting[-1])))
    except ConnectionError:
        return  # whoever reads the answer hears it, too


def _comment(ahead: int | None) -> bytes:
    if ahead is None:
        return b": working\n\n"
    return b": waiting, %d ahead\n\n" % ahead if ahead else b": waiting, next\n\n"
