"""One hierarchy of errors, named by what the caller can do next.

Each error knows its HTTP status, its OpenAI ``type`` and ``code``, the request field it is about, and
whether trying again can help. The API turns any of them into the same four-key error object; a worker
sends them as data, never as a pickled exception.
"""


class MuxdError(Exception):
    """Base: something muxd can explain. Subclasses fix ``status``, ``kind`` and ``code``."""

    status = 500
    kind = "server_error"
    code: str | None = None
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if retry_after is not None:
            self.retry_after = retry_after


class ConfigError(MuxdError):
    """Start-up must stop: a setting is wrong. The message names the key and the file."""

    status = 500
    code = "config_error"


class OutOfMemory(ConfigError):
    """The device has not that much memory left. The message names the setting to lower.

    ``shared``: the machine has not, so that what another CPU device frees would help.
    """

    def __init__(self, message: str, *, shared: bool = False):
        super().__init__(message)
        self.shared = shared


class NoRow(ConfigError):
    """The pool can hold no row of this model, whatever its quota; the others go on. The message names the
    setting to raise."""


class ModelFolderError(MuxdError):
    """A model folder cannot be served. The message names the file and the reason; other models go on."""

    status = 503
    code = "model_unavailable"


class BadRequest(MuxdError):
    """The client must change the request; ``param`` names the field."""

    status = 400
    kind = "invalid_request_error"


class ContextTooLong(BadRequest):
    """Prompt (plus requested tokens) can never fit the model's context or the pool."""

    code = "context_length_exceeded"


class NeverFits(BadRequest):
    """So many answers at once are more than the model may ever have."""

    code = "too_many_sequences"


class Unauthorized(MuxdError):
    """The client must send a key that is known here."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(MuxdError):
    """The client is not let in here, or its key may not do this."""

    status = 403
    kind = "invalid_request_error"
    code = "forbidden"


class RequestCancelled(MuxdError):
    """Somebody has ended the request by its id."""

    status = 499
    kind = "invalid_request_error"
    code = "request_cancelled"


class NotFound(MuxdError):
    """No such model, route or request."""

    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"


class TooLarge(MuxdError):
    """The body is larger than the server accepts."""

    status = 413
    kind = "invalid_request_error"
    code = "request_too_large"


class QueueFull(MuxdError):
    """Try again later: the model's queue is at its bound. ``position``: the place it would have got there."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after = 1.0

    def __init__(self, message: str, *, position: int | None = None, retry_after: float | None = None):
        super().__init__(message, retry_after=retry_after)
        self.position = position


class TooManyAtOnce(MuxdError):
    """Try again when one of the key's requests has ended."""

    status = 429
    kind = "rate_limit_error"
    code = "concurrency_limit"
    retry_after = 1.0


class CannotMeetSlo(QueueFull):
    """Try again later: by what waits ahead, the first token would come after the model's ttft_slo.

    ``retry_after`` is when the same request would fit, if nothing else came.
    """

    code = "slo_unattainable"


class TextBusy(MuxdError):
    """Try again later: the text processes have too much to read, or gave this text up."""

    status = 503
    code = "text_busy"
    retry_after = 1.0


class Overloaded(MuxdError):
    """Try again later: too many connections, or too much memory in requests that still arrive."""

    status = 503
    code = "overloaded"
    retry_after = 5.0


class TooSlow(MuxdError):
    """The client took too long to send its request."""

    status = 408
    kind = "invalid_request_error"
    code = "request_timeout"


class Busy(MuxdError):
    """Not while requests are in the unit: the operator has to wait until it is idle."""

    status = 409
    kind = "conflict_error"
    code = "busy"


class ModelNotReady(MuxdError):
    """Try again later: the model is loading, restarting or has failed; the message says which."""

    status = 503
    code = "model_not_ready"
    retry_after = 2.0


class ModelUnloaded(MuxdError):
    """An operator has unloaded the model; waiting does not bring it back, ``muxctl load`` does."""

    status = 503
    code = "model_unloaded"


class WorkerLost(MuxdError):
    """The worker has died or hangs; what it was computing goes on with the next one."""

    status = 500
    code = "worker_lost"


class NoFiniteLogits(MuxdError):
    """The model computed no number to pick a token by; another prompt may work, the same one will not."""

    code = "no_finite_logits"


class ConstraintFailed(BadRequest):
    """What the client holds an answer to leaves no token to go on with; found out while it is generated."""

    code = "constraint_failed"


class RequestKillsWorker(MuxdError):
    """Its worker ended with it twice, the second time with nobody beside it. Trying again will not help."""

    code = "request_kills_worker"


class ShuttingDown(MuxdError):
    """The daemon is stopping."""

    status = 503
    code = "shutting_down"
    retry_after = 5.0


class Draining(MuxdError):
    """An operator has the daemon take no new requests for a while."""

    status = 503
    code = "draining"
    retry_after = 30.0


class NoHost(MuxdError):
    """Try again later: of several hosts none takes requests."""

    status = 503
    code = "no_host"
    retry_after = 5.0


class HostLost(MuxdError):
    """The host that was answering is lost, and what it had told cannot be gone on with elsewhere."""

    status = 502
    code = "host_lost"


class DaemonUnreachable(MuxdError):
    """muxctl could not reach the daemon; the message says what to start."""
