"""What every route of the local door shares: finding the service, reading a body, answering, explaining."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec
from aiohttp import web

from muxd import __version__
from muxd.admin.schemas import VERSION_HEADER, AdminService
from muxd.errors import BadRequest, MuxdError
from muxd.watch.watcher import Watcher

_LOG = logging.getLogger(__name__)
_DEFECT = "internal error; the daemon's log says more"
SERVICE = web.AppKey("service", AdminService)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Watch = Callable[[Callable[[], None]], AbstractContextManager[Watcher]]
T = TypeVar("T")


async def read(request: web.Request, wanted: type[T]) -> T:
    """The body as ``wanted``. Raises BadRequest naming the field that is wrong."""
    try:
        return msgspec.json.decode(await request.read(), type=wanted)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{request.method} {request.path}: {error}") from None


def answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


async def tell(request: web.Request, news: AsyncIterator[object]) -> web.StreamResponse:
    """One JSON value a line as it comes; a refusal in the midst of it is the last line, ``{"error": ...}``.

    A reader that has gone ends the telling, not what is told.
    """
    out = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await out.prepare(request)
    with contextlib.suppress(ConnectionError):
        try:
            async for one in news:
                await out.write(msgspec.json.encode(one) + b"\n")
        except MuxdError as error:
            await out.write(msgspec.json.encode(_refusal(error.message)) + b"\n")
        except ConnectionError:
            raise
        except Exception:
            _LOG.exception("admin: %s %s failed", request.method, request.path)
            await out.write(msgspec.json.encode(_refusal(_DEFECT)) + b"\n")
    return out


async def feed(request: web.Request, watch: Watch) -> web.StreamResponse:
    """A line for the picture, then one for each change, until muxd stops or the reader does not keep up."""
    out = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})

    def cut() -> None:
        if request.transport is not None:
            request.transport.abort()

    with watch(cut) as watcher, contextlib.suppress(ConnectionError):
        await out.prepare(request)
        async for _, body in watcher:
            await out.write(body + b"\n")
    return out


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as ``{"error": {"message": ...}}``; a defect is logged and does not end the daemon."""
    try:
        return await handler(request)
    except MuxdError as error:
        return _error(error.status, error.message)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _error(error.status, f"{request.method} {request.path}: {error.reason}", headers)
    except Exception:
        _LOG.exception("admin: %s %s failed", request.method, request.path)
        return _error(500, _DEFECT)


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """``on_response_prepare``: the daemon's version on every answer."""
    response.headers[VERSION_HEADER] = __version__


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return answer(_refusal(message), status=status, headers=headers)


def _refusal(message: str) -> dict[str, dict[str, str]]:
    return {"error": {"message": message}}
