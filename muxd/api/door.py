"""What happens around every handler: request id, errors as objects, one access line, one count."""

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from muxd.api import errors
from muxd.api.context import TRACE, context
from muxd.api.guard import admitted, preflight, sign_origin
from muxd.api.replies import SERVER
from muxd.api.routes import NAMES, ROUTES
from muxd.api.trace import Trace, log_access, outcome_of, request_id
from muxd.api.traces import SPANS
from muxd.api.translated import rename
from muxd.errors import BadRequest, NotFound

_PROBES = ("/health", "/ping", "/metrics", "/favicon.ico")
_SHOWN = 100  # characters of a path that is not served
_CLIENT_GONE = 499  # nginx's number for it; only ever logged and counted


@web.middleware
async def door(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every exception into a response. A cancelled handler means that its client went away."""
    clock = context(request).clock
    record = Trace(request_id(request.headers.get("x-request-id")), clock.now())
    request[TRACE] = record
    status = 500
    try:
        response = await _answer(request, handler, record)
        status = response.status
        return response
    except asyncio.CancelledError:
        record.outcome = "cancelled"
        raise
    finally:
        _book(request, record, status, clock.now())


async def _answer(request: web.Request, handler: Handler, record: Trace) -> web.StreamResponse:
    try:
        if (early := preflight(request)) is not None:
            return early
        with admitted(request):
            return await handler(request)
    except web.HTTPException as error:
        return errors.reply(_unknown_route(error, request), errors.path_of(request), record.id)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BadRequest as error:
        return errors.reply(rename(error, record.params), errors.path_of(request), record.id)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        return errors.reply(error, errors.path_of(request), record.id)


def _unknown_route(error: web.HTTPException, request: web.Request) -> Exception:
    """404 and 405 of the router, with a sentence; its own instances are shared and stay as they are."""
    path = request.path[:_SHOWN]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        ways = " or ".join(method for method in allowed if method != "HEAD")
        return web.HTTPMethodNotAllowed(
            request.method, allowed, text=f"{path} does not take {request.method}: use {ways}"
        )
    if error.status != 404:
        return error
    served = ", ".join(route.path for route in ROUTES if route.body is not None)
    sentence = f"Unknown request URL: {request.method} {path}. What is served: {served}; all of it at GET /"
    return NotFound(sentence, code="unknown_url")


def _book(request: web.Request, record: Trace, status: int, now: float) -> None:
    if record.outcome is None:
        record.outcome = outcome_of(status)
    metrics = context(request).metrics
    if record.outcome == "cancelled":
        status = _CLIENT_GONE
        metrics.client_gone(record.model)
    resource = request.match_info.route.resource
    route = NAMES.get(resource.canonical, "unknown") if resource is not None else "unknown"
    metrics.answered(route, request.method, status)
    if record.key is not None:
        metrics.used(record.key.name, status, record.prompt_tokens, record.completion_tokens)
    if (spans := request.app.get(SPANS)) is not None:
        spans.ended(record, request.headers, route=route, status=status, now=now)
    path = request.rel_url.raw_path
    log_access(
        record, method=request.method, path=path, status=status, now=now, quiet=path.startswith(_PROBES)
    )


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """``on_response_prepare``: the request id on every answer, streams included."""
    response.headers["Server"] = SERVER
    record = request.get(TRACE)
    if record is not None:
        response.headers["x-request-id"] = record.id
        if record.ignored:
            response.headers["x-muxd-ignored"] = ", ".join(record.ignored)
        sign_origin(request, response)
