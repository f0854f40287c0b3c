"""Connections of the HTTP door: how many, how long each may take over what, and what they hear when they
break off.

aiohttp waits for ever for headers, and for readers that do not read. Each connection here has one timer at
most; idle ones make room, the oldest first, when as many are there as may be.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from muxd.api.errors import error_object
from muxd.api.replies import SERVER
from muxd.api.sse import SKIPPED
from muxd.errors import MuxdError, Overloaded, TooSlow

_PROBES = (
    0.0,
    0.05,
    0.5,
    5.0,
)  # seconds between looks whether a half-closed client is there; the last repeats
LINE = 32 << 10  # bytes of a request's first line and of each header: some tokens and cookies are long
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class HttpLimits:
    """``[limits]`` of muxd.toml in bytes and seconds; and when a stream that waits says so."""

    connections: int = 4096
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 75.0
    write_timeout: float = 30.0
    body_memory: int = 64 << 20
    first_sign: float = 10.0  # until then a stream that fails can still have a true status
    next_sign: float = 15.0  # proxies and browsers cut off what is silent for a minute


class GuestRunner(web.AppRunner):
    """Runs an application for guests within limits."""

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, limits: HttpLimits, **kwargs: Any):
        super().__init__(app, keepalive_timeout=limits.idle_timeout, lingering_time=1.0, **kwargs)
        self._limits = limits

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Guests(made, self._limits)


class GuestSite(web.SockSite):
    """One listening socket. A TLS handshake has as long as headers have: asyncio alone waits a minute."""

    __slots__ = ()

    async def start(self) -> None:
        await web.BaseSite.start(self)
        guests = self._runner.server
        assert isinstance(guests, Guests)
        self._server = await asyncio.get_running_loop().create_server(
            guests,
            sock=self._sock,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=guests.limits.header_timeout if self._ssl_context is not None else None,
        )


class Guests(web.Server):
    """All connections. ``idle`` has those that owe nobody anything, in the order they became so."""

    def __init__(self, made: web.Server, limits: HttpLimits):
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        self.limits = limits
        self.idle: dict[Guest, None] = {}
        self.count = 0

    def __call__(self) -> RequestHandler:
        return Guest(self, loop=self._loop, **self._kwargs)

    def make_room(self) -> bool:
        """For one that has just come: whether it may stay."""
        if self.count < self.limits.connections:
            return True
        oldest = next(iter(self.idle), None)
        if oldest is not None:
            oldest.leave()
        return oldest is not None


class Guest(RequestHandler):
    """One connection, from the first byte to the last."""

    def __init__(self, guests: Guests, **kwargs: Any):
        super().__init__(guests, **kwargs)
        self._guests = guests
        self._limits = guests.limits
        self._counted = False
        self._header: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._body: Any = None  # of the last request that has begun
        self._unread = 0  # bytes that waited for the client at the last look

    # ---- coming and going ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._guests.make_room():
            self._refuse(Overloaded("too many connections; try again later"))
            return
        self._counted = True
        self._guests.count += 1
        self._guests.idle[self] = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._rest()
        self._cancel("_reader")
        super().connection_lost(exc)

    def leave(self) -> None:
        """It makes room."""
        self._rest()
        self.force_close()

    def _rest(self) -> None:
        """It counts no more, and no timer waits for it."""
        self._guests.idle.pop(self, None)
        self._guests.count -= self._counted
        self._counted = False
        self._cancel("_header")
        self._cancel("_probe")

    def force_close(self) -> None:
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            # Closing waits until all is sent, for ever where nobody reads.
            self._loop.call_later(self._limits.write_timeout, transport.abort)

    # ---- headers --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]
        if self._waits():
            if data and self._header is None:
                self._header = self._loop.call_later(self._limits.header_timeout, self._no_headers)
        else:
            self._guests.idle.pop(self, None)
            self._cancel("_header")

    def _waits(self) -> bool:
        """No request is in hand, not even one that could not be read."""
        return not self._messages and self._waiter is not None and not self._waiter.done()

    def _no_headers(self) -> None:
        self._header = None
        if self._waits():
            seconds = self._limits.header_timeout
            self._refuse(TooSlow(f"the headers of the request were not there within {seconds:g} s"))

    def _refuse(self, error: MuxdError) -> None:
        """Where no handler is: say so and hang up."""
        if self.transport is not None:
            body = msgspec.json.encode(error_object(error))
            reason = "Request Timeout" if error.status == 408 else "Service Unavailable"
            head = (
                f"HTTP/1.1 {error.status} {reason}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            )
            if error.retry_after is not None:
                head += f"Retry-After: {error.retry_after:.0f}\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.leave()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The four-key object, which quotes nothing of what could not be read."""
        super().handle_error(request, status, exc, message)  # logs; raises where an answer has begun
        said = web.HTTPBadRequest if status < 500 else web.HTTPInternalServerError
        what = f"the request is not valid HTTP/1.1 ({type(exc).__name__})" if status < 500 else "muxd failed"
        if isinstance(exc, LineTooLong):
            status, what = 431, f"the first line or a header has more than {LINE} bytes"
        answer = web.Response(
            status=status,
            body=msgspec.json.encode(error_object(said(text=what))),
            content_type="application/json",
            headers={"Server": SERVER},
        )
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self._cancel("_probe")
        done = await super().finish_response(request, resp, start_time)
        if self._counted:
            self._guests.idle[self] = None
        return done

    # ---- half-closed clients ----------------------------------------------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio has it so, aiohttp is narrower
        """A client may end its part and still want the answer. One that has gone looks the same until
        something is sent to it: an interim response is, which clients skip."""
        if self._waits() or self._body is None or not self._body.is_eof():
            return False
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half of a connection
        self._close = True
        self._look(0)
        return True

    def _look(self, number: int) -> None:
        if self.transport is not None and not self._paused:
            self.transport.write(self._interim())
        later = _PROBES[min(number + 1, len(_PROBES) - 1)]
        self._probe = self._loop.call_later(later, self._look, number + 1)

    def _interim(self) -> bytes:
        """What a client skips at this point of its answer."""
        request = self._current_request
        if request is None or request.writer.output_size == 0:
            old = request is not None and request.version < (1, 1)
            return b"" if old else _CONTINUE
        return request.get(SKIPPED, b"") if getattr(request.writer, "chunked", False) else b""

    # ---- readers that do not read -------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._cancel("_reader")
        super().resume_writing()

    def _watch_reader(self) -> None:
        if self.transport is not None:
            self._unread = self.transport.get_write_buffer_size()
            self._reader = self._loop.call_later(self._limits.write_timeout, self._look_at_reader)

    def _look_at_reader(self) -> None:
        self._reader = None
        if self.transport is not None and self.transport.get_write_buffer_size() >= self._unread:
            self.logger.warning("a client that does not read its answer is cut off")
            self.transport.abort()
        else:
            self._watch_reader()

    def _cancel(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
