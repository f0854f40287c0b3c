"""Every failure as an error object, with the right status and retry headers: OpenAI's with all four keys, and
under the paths of other APIs theirs.

``reply`` turns an exception into a response, ``told`` into what the last frame of a stream says. What nobody
expected is logged once, with its type and stack and without its message: a message may quote a prompt.
"""

import logging
import re
import traceback
from typing import Any

from aiohttp import web

from muxd.api.replies import json_response
from muxd.errors import (
    ContextTooLong,
    ModelFolderError,
    MuxdError,
    NeverFits,
    NoFiniteLogits,
    QueueFull,
    RequestCancelled,
    RequestKillsWorker,
    Unauthorized,
)

log = logging.getLogger("muxd.api")

_ANTHROPIC = re.compile(r"(/v1)?/messages(/|$)")
_OLLAMA = re.compile(r"/api/(?!(events|why|models)(/|$))")  # the others under /api are not its own
_MODELS = re.compile(r"(/v1)?/models(/|$)")
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_FINAL = (
    *(ContextTooLong, ModelFolderError, NeverFits, NoFiniteLogits, RequestCancelled, RequestKillsWorker),
)
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


def reply(error: BaseException, path: str, request_id: str) -> web.Response:
    """The response for ``error``. Logs what is neither a MuxdError nor an HTTP exception."""
    status = error.status if isinstance(error, MuxdError | web.HTTPException) else 500
    headers: dict[str, str] = {}
    if isinstance(error, MuxdError):
        headers = _retry_headers(error)
    elif isinstance(error, web.HTTPException) and "Allow" in error.headers:
        headers["Allow"] = error.headers["Allow"]
    return json_response(told(error, path, request_id), status, headers)


def told(error: BaseException, path: str, request_id: str) -> dict[str, Any]:
    """The error body in the shape of the API that ``path`` belongs to. Logs what nobody expected."""
    if not isinstance(error, MuxdError | web.HTTPException):
        report(error, request_id)
    said = error_object(error)
    status = error.status if isinstance(error, MuxdError | web.HTTPException) else 500
    if _ANTHROPIC.match(path):
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        about = {"type": kind, "message": said["error"]["message"]}
        return {"type": "error", "error": about, "request_id": request_id}
    return {"error": said["error"]["message"]} if _OLLAMA.match(path) else said


def path_of(request: web.Request) -> str:
    """The path by which ``told`` finds the API: clients of two ask for models, and tell by a header."""
    asks = "anthropic-version" in request.headers and _MODELS.match(request.path)
    return "/v1/messages" if asks else request.path


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
    if isinstance(error, QueueFull) and error.position is not None:
        headers["x-queue-position"] = str(error.position)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, _FINAL):
        headers["x-should-retry"] = "false"
    return headers
