"""A request to a host and its answer back: path, query, headers and body as they are, as it comes.

Whatever ends the reading of an answer (its end, a client that goes away, a host that is lost) closes the
connection to the host, whose muxd then cancels what nobody waits for.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp
from msgspec import Struct
from yarl import URL

from muxd.clock import Clock, MonotonicClock
from muxd.errors import HostLost, MuxdError, NoHost
from muxd.ray.asked import Asked
from muxd.ray.hosts import Hosts
from muxd.ray.reports import Seen
from muxd.ray.retries import NEWS, has_left, may_retry, refused, says_nothing
from muxd.ray.saying import Headers, broken_off

_CONNECT = 2.0  # seconds until a host that does not take the connection is passed over
# RFC 9110, 7.6.1; Host and the length are the new connection's own.
_HOP = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    *("host", "content-length", "expect", "date"),
}
_STREAMS = ("text/event-stream", "application/x-ndjson")
_BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)


class ProxyCall(Struct, frozen=True):
    """A client's request; ``query`` without "?", ``client`` its address, ``id`` its x-request-id."""

    method: str
    path: str
    query: str = ""
    headers: Headers = []
    body: bytes = b""
    client: str = ""
    id: str = ""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


class ProxyAnswer(Struct, frozen=True):
    """What the client gets."""

    status: int
    headers: Headers
    body: "bytes | Stream"


@dataclass
class _Trip:
    """One request, over the hosts that it is sent to. ``lost``: those that broke off with it. ``moved``: the
    model has left one of them, where it was by what was heard."""

    call: ProxyCall
    asked: Asked
    left: list[str]
    tried: set[str] = field(default_factory=set)
    lost: int = 0
    moved: bool = False
    refusal: ProxyAnswer | None = None


@dataclass(eq=False)
class _Opened:
    """A host has begun to answer."""

    host: str
    response: aiohttp.ClientResponse
    close: Callable[[], None]
    headers: Headers = field(init=False)

    def __post_init__(self) -> None:
        raw = self.response.raw_headers
        shown = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
        self.headers = [(name, value) for name, value in shown if name.lower() not in _HOP]

    @property
    def kind(self) -> str:
        return self.response.headers.get("Content-Type", "")


class Proxy:
    """Over ``hosts``. Made on a running event loop; ``close`` it there."""

    def __init__(self, hosts: Hosts, clock: Clock | None = None):
        self.hosts = hosts
        self.retries = 0  # requests that were sent to another host
        self._clock = clock or MonotonicClock()
        self._cuts: defaultdict[str, set[Callable[[], None]]] = defaultdict(set)
        self._news = asyncio.Event()  # set, and another takes its place, by each ``heard``
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
        )

    async def close(self) -> None:
        await self._session.close()

    def heard(self, news: Iterable[Seen]) -> None:
        """Take in reports. What is under way at a host that is lost is cut off: no packet would tell."""
        for host in self.hosts.heard(news):
            for cut in list(self._cuts[host]):
                cut()
        waited_for, self._news = self._news, asyncio.Event()
        waited_for.set()

    async def forward(self, call: ProxyCall, asked: Asked, hosts: list[str]) -> ProxyAnswer:
        """The answer of the first of ``hosts`` that takes it. Raises NoHost or HostLost."""
        trip = _Trip(call, asked, list(hosts))
        while True:
            opened = await self._next(trip)
            if isinstance(opened, ProxyAnswer):
                return opened
            if opened.kind.startswith(_STREAMS):
                return ProxyAnswer(opened.response.status, opened.headers, Stream(self, trip, opened))
            try:
                body = await opened.response.read()
            except _BROKEN:
                self._broke(trip, opened.host)
                continue
            finally:
                opened.close()
            return ProxyAnswer(opened.response.status, opened.headers, body)

    async def whole(self, call: ProxyCall, host: str) -> ProxyAnswer | None:
        """One host's answer that is no stream; None where it gives none."""
        try:
            answer = await self.forward(call, Asked("any"), [host])
        except (HostLost, NoHost):
            return None
        return answer if isinstance(answer.body, bytes) else None

    async def _next(self, trip: _Trip) -> "_Opened | ProxyAnswer":
        """The next host that does not refuse; where all do, the last refusal."""
        while trip.left or await self._look_again(trip):
            host = trip.left.pop(0)
            trip.tried.add(host)
            try:
                opened = await self._ask(trip, host)
            except aiohttp.ClientConnectorError:
                self.hosts.failed(host)  # nothing was sent
                continue
            except _BROKEN:
                self._broke(trip, host)
                continue
            self.hosts.answered(host)
            if not refused(opened.response.status):
                return opened
            comes = "Retry-After" in opened.response.headers
            there = self.hosts.there(host, trip.asked)
            trip.moved |= has_left(opened.response.status, comes=comes, there=there)
            trip.refusal = await self._refusal(opened) or trip.refusal
            self.retries += bool(trip.left)
        if trip.refusal is not None:
            return trip.refusal
        raise (
            HostLost("the host that was to answer is lost") if trip.lost else NoHost("no host can be reached")
        )

    async def _look_again(self, trip: _Trip) -> bool:
        """Whether newer reports name hosts that were not tried: a model that moves has left its host before
        the last request to it was there. Waits for such reports where it has."""
        if not trip.asked.model or trip.refusal is None:
            return False
        try:
            async with asyncio.timeout(NEWS):
                while not (left := self._untried(trip)) and trip.moved:
                    await self._news.wait()
        except TimeoutError:
            return False
        trip.left, trip.moved = left, False
        self.retries += bool(left)
        return bool(left)

    def _untried(self, trip: _Trip) -> list[str]:
        try:
            return [host for host in self.hosts.order(trip.asked) if host not in trip.tried]
        except NoHost:
            return []

    async def _refusal(self, opened: _Opened) -> ProxyAnswer | None:
        try:
            return ProxyAnswer(opened.response.status, opened.headers, await opened.response.read())
        except _BROKEN:
            return None
        finally:
            opened.close()

    def _broke(self, trip: _Trip, host: str) -> None:
        """The host is lost in the midst of it, before the client has heard anything. Raises HostLost where it
        is not tried again."""
        self.hosts.failed(host)
        trip.lost += 1
        if not may_retry(trip.lost, told=False):
            raise HostLost(f"{trip.lost} hosts were lost with this request, and it is not tried at another")
        self.retries += bool(trip.left)

    async def _ask(self, trip: _Trip, host: str) -> _Opened:
        """Until its headers are there. TimeoutError: the host is lost."""
        call, load, began = trip.call, self.hosts.load(host), self._clock.now()
        url = self.hosts.url(host) + call.path + (f"?{call.query}" if call.query else "")
        self.hosts.sent(host, trip.asked)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as scope:
                with self._cut(host, lambda: scope.reschedule(loop.time())):
                    response = await self._session.request(
                        call.method,
                        URL(url, encoded=True),
                        data=call.body or None,
                        headers=_onward(call),
                        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                        allow_redirects=False,
                    )
        except BaseException:
            self.hosts.ended(host)
            raise
        cut = self._cut(host, response.close)
        cut.__enter__()

        def close() -> None:
            cut.__exit__()
            response.close() if not response.content.at_eof() else response.release()
            self.hosts.ended(host)

        opened = _Opened(host, response, close)
        if opened.kind.startswith(_STREAMS):
            self.hosts.began(host, trip.asked.model, self._clock.now() - began, load)
        return opened

    def _cut(self, host: str, cut: Callable[[], None]) -> "_Cut":
        return _Cut(self._cuts[host], cut)

    async def following(self, trip: _Trip, opened: _Opened, told: bool) -> _Opened | bytes:
        """Who goes on with a stream whose host is lost, or its last frame."""
        failure: MuxdError = HostLost("the host that was answering is lost; what it has told is all there is")
        if told:
            self.hosts.failed(opened.host)
        else:
            try:
                self._broke(trip, opened.host)
                following = await self._next(trip)
                if isinstance(following, _Opened):
                    if following.kind == opened.kind:
                        return following
                    following.close()
                failure = NoHost("the host that was to answer is lost, and no other takes the request now")
            except MuxdError as error:
                failure = error
        return broken_off(failure, trip.call.path, opened.kind, trip.call.id)


class Stream:
    """Chunks as they come. Of a host that is lost before it has told a token another one takes over.
    ``close`` it, read to its end or not."""

    def __init__(self, proxy: Proxy, trip: _Trip, opened: _Opened):
        self._proxy, self._trip = proxy, trip
        self._opened: _Opened | None = opened
        self._told = False

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        while (opened := self._opened) is not None:
            try:
                chunk = await opened.response.content.readany()
            except _BROKEN:
                self.close()
                following = await self._proxy.following(self._trip, opened, self._told)
                if isinstance(following, bytes):
                    return following
                self._opened = following
                continue
            if chunk:
                self._told = self._told or not says_nothing(chunk, opened.kind)
                return chunk
            self.close()
        raise StopAsyncIteration

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


class _Cut:
    """Registered while it is entered; ``__exit__`` may come twice."""

    def __init__(self, cuts: set[Callable[[], None]], cut: Callable[[], None]):
        self._cuts, self._own = cuts, cut

    def __enter__(self) -> None:
        self._cuts.add(self._own)

    def __exit__(self, *_: object) -> None:
        self._cuts.discard(self._own)


def _onward(call: ProxyCall) -> list[tuple[str, str]]:
    """With who asked: without it a host would take every client for one of its own machine."""
    kept = [(name, value) for name, value in call.headers if name.lower() not in _HOP]
    before = [value for name, value in kept if name.lower() == "x-forwarded-for"]
    kept = [(name, value) for name, value in kept if name.lower() != "x-forwarded-for"]
    return [*kept, ("X-Forwarded-For", ", ".join([*before, call.client or "unknown"]))]
