"""The local door: HTTP on a Unix socket, for muxctl. Started by the daemon, which it sees only as a Steward.

Routes begin with /v0/ because they may change with any release; every answer carries the daemon's version,
so that muxctl can tell when the two differ.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from muxd import __version__
from muxd.admin.claim import claim, release
from muxd.admin.schemas import VERSION_HEADER, Steward, Stopping
from muxd.errors import MuxdError

_LOG = logging.getLogger(__name__)
_STEWARD = web.AppKey("steward", Steward)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """Listens from ``start`` to ``close``; the socket file exists exactly that long."""

    def __init__(self, steward: Steward, path: Path):
        self._path = path
        self._runner = web.AppRunner(_app(steward), access_log=None, shutdown_timeout=1.0)
        self._inode = -1

    async def start(self) -> None:
        """Raises ConfigError where the path cannot be had (a live daemon, a plain file, no permission)."""
        listener = claim(self._path)
        self._inode = self._path.lstat().st_ino
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=16).start()

    async def close(self) -> None:
        """Stop listening and remove the socket file. Idempotent."""
        release(self._path, self._inode)
        await self._runner.cleanup()


def _app(steward: Steward) -> web.Application:
    app = web.Application(middlewares=[_explain])
    app[_STEWARD] = steward
    app.on_response_prepare.append(_stamp)
    app.router.add_routes(
        [
            web.get("/v0/status", _status),
            web.get("/v0/ps", _ps),
            web.get("/v0/models", _models),
            web.post("/v0/stop", _stop),
        ]
    )
    return app


async def _status(request: web.Request) -> web.Response:
    return _json(request.app[_STEWARD].status())


async def _ps(request: web.Request) -> web.Response:
    return _json(request.app[_STEWARD].ps())


async def _models(request: web.Request) -> web.Response:
    return _json(request.app[_STEWARD].models())


async def _stop(request: web.Request) -> web.Response:
    steward = request.app[_STEWARD]
    answer = _json(Stopping(pid=steward.status().pid), status=202)
    steward.stop()
    return answer


@web.middleware
async def _explain(request: web.Request, handler: _Handler) -> web.StreamResponse:
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
        return _error(500, "internal error; the daemon's log says more")


async def _stamp(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[VERSION_HEADER] = __version__


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": {"message": message}}, status=status, headers=headers)
