"""The local door: HTTP on a Unix socket, for muxctl. Started by the daemon, seen only as an AdminService.

Routes begin with /v0/ because they may change with any release; every answer carries the daemon's version,
so that muxctl can tell when the two differ.
"""

from pathlib import Path

from aiohttp import web

from muxd.admin.answers import SERVICE, explain, stamp
from muxd.admin.claim import claim, release
from muxd.admin.routes import routes
from muxd.admin.schemas import AdminService


class AdminServer:
    """Listens from ``start`` to ``close``; the socket file exists exactly that long."""

    def __init__(self, service: AdminService, path: Path):
        self._path = path
        self._runner = web.AppRunner(_app(service), access_log=None, shutdown_timeout=1.0)
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


def _app(service: AdminService) -> web.Application:
    app = web.Application(middlewares=[explain])
    app[SERVICE] = service
    app.on_response_prepare.append(stamp)
    app.router.add_routes(routes())
    return app
