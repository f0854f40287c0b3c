"""The page at /, its files, and the feed that it and scripts read: /api/events."""

import contextlib

import msgspec
from aiohttp import web

from muxd.api.context import context
from muxd.api.guard import check_actions, may_operate
from muxd.api.sse import SSE, EventStream
from muxd.errors import NotFound
from muxd.watch.files import INDEX, PageFile, page_files

# Nothing but our own files, nobody's frame, and no form: what a model has said can load and send nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # another version of muxd has another page
    "Vary": "Accept",
}


def front(request: web.Request) -> web.Response:
    """The page itself, which knows nothing yet."""
    return _answer(request, page_files()[INDEX])


async def page_file(request: web.Request) -> web.Response:
    """What the page is made of. Raises NotFound."""
    found = page_files().get(request.match_info["file"])
    if found is None:
        raise NotFound("the page has no such file", code="unknown_url")
    return _answer(request, found)


def _answer(request: web.Request, file: PageFile) -> web.Response:
    headers = _HEADERS | {"ETag": file.etag}
    if request.headers.get("If-None-Match") == file.etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=headers)


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: ``hello`` (what the reader may do), ``picture``, then ``change`` as it comes.

    It sees everybody's requests, and so needs the right to act. A reader that does not keep up is cut off."""
    check_actions(request)
    here = context(request)
    out = EventStream(request, SSE, here.clock)
    hello = msgspec.json.encode({"may_act": may_operate(request), "keys": here.keys is not None})

    def cut() -> None:
        if request.transport is not None:
            request.transport.abort()

    with here.serving.operator.watch(cut) as watcher, contextlib.suppress(ConnectionError):
        await out.send(b"event: hello\ndata: %b\n\n" % hello)
        async for name, body in watcher:
            await out.send(b"event: %b\ndata: %b\n\n" % (name.encode(), body))
    assert out.response is not None
    return out.response
