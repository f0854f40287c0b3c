"""A small mirror of the Hugging Face hub: its API for the repositories it is given, large files from another
address behind a redirect, ranges, and connections that are cut or held on demand."""

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

LARGE = 4096  # bytes from which a file is kept as the hub keeps large ones
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_tokenOfTheTests"
_PIECE = 16384

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    path: str
    range: str | None
    authorized: bool


@dataclass
class Mirror:
    """``repositories``: name -> file -> content. ``gated``: names that want TOKEN. ``cut``: files whose next
    answer breaks off in the middle. ``held``: the same, but it waits, for ``reached`` is set then."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    reached: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    _store: str = ""  # the address of large files
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, name: str) -> list[Asked]:
        """Requests for the content of a file, wherever it is kept."""
        return [one for one in self.asked if one.path.endswith(f"/{name}")]

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        app.add_routes(
            [
                web.get("/api/models/{owner}/{name}", self._info),
                web.get("/api/models/{owner}/{name}/revision/{revision}", self._info),
                web.get("/{owner}/{name}/resolve/{revision}/{file:.+}", self._file),
                web.get("/store/{owner}/{name}/{file:.+}", self._stored),
            ]
        )
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        header = request.headers.get("Authorization")
        self.asked.append(Asked(request.path, request.headers.get("Range"), header == f"Bearer {TOKEN}"))
        return await handler(request)

    def _name(self, request: web.Request) -> str:
        return f"{request.match_info['owner']}/{request.match_info['name']}"

    def _refusal(self, request: web.Request) -> web.Response | None:
        name, revision = self._name(request), request.match_info.get("revision", "main")
        if name not in self.repositories:
            return web.json_response({}, status=401, headers={"X-Error-Code": "RepoNotFound"})
        if name in self.gated and not self.asked[-1].authorized:
            return web.json_response({}, status=403, headers={"X-Error-Code": "GatedRepo"})
        if revision not in ("main", COMMIT):
            return web.json_response({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return None

    async def _info(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        name = self._name(request)
        files = [_described(file, content) for file, content in self.repositories[name].items()]
        return web.json_response({"id": name, "modelId": name, "sha": COMMIT, "siblings": files})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        name, file = self._name(request), request.match_info["file"]
        content = self.repositories[name].get(file)
        if content is None:
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        if len(content) >= LARGE:
            raise web.HTTPFound(f"{self._store}/store/{name}/{file}?signature=secret")
        return web.Response(body=content)

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["file"]
        content = self.repositories[self._name(request)][file]
        if file in self.damaged:
            content = bytes(len(content))
        begin = request.http_range.start or 0
        status = 206 if begin else 200
        answer = web.StreamResponse(status=status, headers={"Content-Length": str(len(content) - begin)})
        await answer.prepare(request)
        stop = file in self.cut or file in self.held
        end = begin + (len(content) - begin) // 2 if stop else len(content)
        for at in range(begin, end, _PIECE):
            await answer.write(content[at : min(at + _PIECE, end)])
        if file in self.held:
            self.reached.set()
            await self._over.wait()
        if file in self.cut:
            self.cut.discard(file)
            assert request.transport is not None
            request.transport.close()
        return answer


def _described(file: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    told: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": blob}
    if len(content) >= LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        told |= {"blobId": "0" * 40, "lfs": {"size": len(content), "sha256": sha256, "pointerSize": 134}}
    return told


@contextmanager
def mirror(repositories: dict[str, dict[str, bytes]]) -> Iterator[Mirror]:
    """In a thread of its own, on two free ports."""
    hub, loop, ready = Mirror(repositories), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(hub.app(), shutdown_timeout=0.1)
        await runner.setup()
        for _ in range(2):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        hub.url, hub._store = (f"http://127.0.0.1:{port}" for _, port in runner.addresses)
        ready.set()
        await hub._over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(hub._over.set)
        thread.join()
        loop.close()
