"""Every failure as OpenAI's error object, all four keys, with the right status and retry headers.

``reply`` turns an exception into a response, ``frame`` into the last event of a stream. What nobody
expected is logged once, with its type and stack and without its message: a message may quote a prompt.
"""

import logging
import traceback
from typing import Any

import msgspec
from aiohttp import web

from muxd.errors import ContextTooLong, ModelFolderError, MuxdError, NoFiniteLogits, RequestKillsWorker

log = logging.getLogger("muxd.api")

_CODES = {405: "method_not_allowed", 415: "unsupported_media_type"}


def error_object(error: BaseException) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``. An unknown exception keeps its secrets."""
    if isinstance(error, MuxdError):
        body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    elif isinstance(error, web.HTTPException):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        message = error.text or error.reason
        body = {"message": message, "type": kind, "param": None, "code": _CODES.get(error.status)}
    else:
        message = "muxd failed to handle this request; the reason is in its log"
        body = {"message": message, "type": "server_error", "param": None, "code": "internal_error"}
    return {"error": body}


def reply(error: BaseException, request_id: str) -> web.Response:
    """The response for ``error``. Logs what is neither a MuxdError nor an HTTP exception."""
    status = error.status if isinstance(error, MuxdError | web.HTTPException) else 500
    headers: dict[str, str] = {}
    if isinstance(error, MuxdError):
        headers = _retry_headers(error)
    elif isinstance(error, web.HTTPException):
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    else:
        report(error, request_id)
    body = msgspec.json.encode(error_object(error))
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def frame(error: Exception, request_id: str) -> bytes:
    """The error event that ends a stream whose status is already sent."""
    if not isinstance(error, MuxdError):
        report(error, request_id)
    return b"data: " + msgspec.json.encode(error_object(error)) + b"\n\n"


def report(error: BaseException, request_id: str) -> None:
    """Log an unexpected exception: type and stack only."""
    if not isinstance(error, Exception):
        log.error("unexpected %s in request %s", type(error).__name__, request_id)
        return
    stack = "".join(traceback.format_tb(error.__traceback__))
    log.error("unexpected %s in request %s\n%s", type(error).__name__, request_id, stack)


class Discreet(logging.LoggerAdapter[logging.Logger]):
    """For aiohttp's own use: it logs the bytes it could not parse, and those may hold a key or a prompt."""

    def exception(self, msg: object, *args: object, exc_info: Any = None, **_: Any) -> None:
        kind = type(exc_info).__name__ if isinstance(exc_info, BaseException) else "error"
        self.warning("connection dropped: %s", kind)


def _retry_headers(error: MuxdError) -> dict[str, str]:
    """openai-python retries 408, 409, 429 and 5xx twice unless told not to."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = f"{error.retry_after:.0f}"
    if isinstance(error, ContextTooLong | ModelFolderError | NoFiniteLogits | RequestKillsWorker):
        headers["x-should-retry"] = "false"
    return headers
