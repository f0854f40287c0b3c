"""The response that a stream's frames go to."""

from aiohttp import web

from muxd.clock import Clock

_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold tokens back
}
SSE = "text/event-stream; charset=utf-8"
# What readers of a stream skip between two frames, as one chunk: a comment, or a space before JSON.
SKIPPED = web.RequestKey("skipped", bytes)
_COMMENT, _SPACE = b"3\r\n:\n\n\r\n", b"1\r\n \r\n"


class EventStream:
    """Its headers go out with the first frame: what fails before gets a true status.

    A slow reader is waited for (aiohttp drains above 64 KiB), so its frames do not pile up; its tokens wait
    in their ``TokenStream`` as ints. A reader that went away raises ConnectionError.
    """

    def __init__(self, request: web.Request, content_type: str, clock: Clock):
        self._request, self._clock = request, clock
        self.spoke = clock.now()  # when something was sent last
        request[SKIPPED] = _COMMENT if content_type == SSE else _SPACE
        self._headers = _HEADERS | {"Content-Type": content_type}
        self.response: web.StreamResponse | None = None

    async def send(self, data: bytes) -> None:
        """Frames, in one write; without any the headers go out."""
        response = self.response
        if response is None:
            # Nothing between here and the first write yields to the loop, so the choices of one answer,
            # which share this stream, cannot start it twice.
            response = self.response = web.StreamResponse(headers=self._headers)
            await response.prepare(self._request)
        self.spoke = self._clock.now()
        if data:
            await response.write(data)
