"""Who is let in: by the name that the client knows this server by, by its key, by the page it comes from.

A daemon on a loopback address is in reach of every web page that its user opens. A page of another site can
send what needs no preflight, and with a name of its own for 127.0.0.1 (DNS rebinding) it could read answers,
too; so names are looked at there.
"""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import hdrs, web

from muxd.api.context import context, trace
from muxd.errors import Forbidden, Unauthorized

_OPEN = ("/health", "/ping", "/page")  # load balancers have no keys, and a page has none before it is there
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
_METHODS = "GET, POST, DELETE, OPTIONS"
_EXPOSED = "x-request-id, x-should-retry, x-muxd-ignored, x-queue-position, Retry-After"
_DAY = "86400"


@contextmanager
def admitted(request: web.Request) -> Iterator[None]:
    """While the request is handled. Raises Forbidden, Unauthorized or TooManyAtOnce."""
    _check_host(request)
    keys = context(request).keys
    if keys is None or _is_open(request.path) or wants_page(request):
        yield
        return
    key = keys.find(_secret(request))
    if key is None:
        raise Unauthorized(
            "this server needs an API key: send Authorization: Bearer KEY, or x-api-key: KEY"
            if not _secret(request)
            else "this API key is not known here"
        )
    trace(request).key = key
    with keys.hold(key):
        yield


def check_actions(request: web.Request) -> None:
    """Whether it may change something for everybody. Raises Forbidden.

    Without keys whoever is on this machine may, but no page of another site in a browser there.
    """
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin") and not _allows(request, request.headers.get(hdrs.ORIGIN, "")):
        raise Forbidden("a page of another site may not do this; see server.cors_origins")
    if context(request).keys is not None:
        key = trace(request).key
        if key is None or not key.actions:
            raise Forbidden(
                "this API key may not do this: it needs actions = true in the file of server.keys"
            )
    elif not _is_loopback(request.remote or "") or any(name in request.headers for name in _FORWARDED):
        raise Forbidden("from another machine this needs an API key with actions = true (server.keys)")


def check_operator(request: web.Request) -> None:
    """Whether it may change where models are, as an operator does. Raises Forbidden. Without keys nobody may:
    ``muxctl`` is for who is on this machine."""
    if context(request).keys is None:
        raise Forbidden(
            "over HTTP this needs an API key with actions = true, and this server has no keys (server.keys)"
        )
    check_actions(request)


def may_operate(request: web.Request) -> bool:
    try:
        check_operator(request)
    except Forbidden:
        return False
    return True


def may_see_all(request: web.Request) -> bool:
    """Everybody's requests are its business, not only those of its key."""
    try:
        check_actions(request)
    except Forbidden:
        return False
    return True


def preflight(request: web.Request) -> web.Response | None:
    """The answer to a browser that asks whether a page may send what it is about to."""
    asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    if not asks or not _allows(request, request.headers.get(hdrs.ORIGIN, "")):
        return None
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_MAX_AGE: _DAY,
        "Vary": "Origin, Access-Control-Request-Headers",
    }
    if wanted := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


def sign_origin(request: web.Request, response: web.StreamResponse) -> None:
    """A page of an origin in ``server.cors_origins`` may read the answer."""
    origins = context(request).cors_origins
    origin = request.headers.get(hdrs.ORIGIN, "")
    if not origins:
        return
    if "Vary" not in response.headers:
        response.headers["Vary"] = "Origin"
    if _allows(request, origin):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED


def _allows(request: web.Request, origin: str) -> bool:
    origins = context(request).cors_origins
    return bool(origin) and ("*" in origins or origin in origins)


def _secret(request: web.Request) -> str:
    scheme, _, secret = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("x-api-key", "").strip()


def wants_page(request: web.Request) -> bool:
    """A browser is opened here; what it gets tells nothing of the server."""
    return request.path == "/" and "text/html" in request.headers.get(hdrs.ACCEPT, "")


def _is_open(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in _OPEN)


def _check_host(request: web.Request) -> None:
    here = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if not isinstance(here, tuple) or not _is_loopback(here[0]):
        return
    name = _host_name(request.headers.get(hdrs.HOST, ""))
    known = context(request).allowed_hosts
    if name and not _is_address(name) and not (name == "localhost" or name.endswith(".localhost")):
        if name in known or "*" in known:
            return
        raise Forbidden(
            f"{name[:100]!r} is no name of this server; if it is one, add it to server.allowed_hosts",
            code="unknown_host",
        )


def _host_name(host: str) -> str:
    """Without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    """Also as IPv6 writes an address of IPv4."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
