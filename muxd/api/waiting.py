"""Signs of life of a stream that waits: its status after a while, and comments with its place."""

import asyncio
from collections.abc import Sequence

from aiohttp import web

from muxd.api.context import context
from muxd.api.sse import EventStream
from muxd.engine.request import Request

_SHORTEST = 0.05  # seconds between two looks


async def give_signs(
    request: web.Request, out: EventStream, waiting: Sequence[Request], *, comments: bool
) -> None:
    """Until cancelled, or the client is gone. ``waiting``: the sequences of the answer; the last of them
    tells how far it is. Without ``comments`` the status is all."""
    here = context(request)
    await asyncio.sleep(here.limits.first_sign)
    pause = here.limits.next_sign
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
