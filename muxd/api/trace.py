"""One request's record: what the access log line says about it. Never prompt text, never a key."""

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from muxd import logfmt
from muxd.api.keys import Key

access = logging.getLogger("muxd.access")

Outcome = Literal["served", "refused", "cancelled", "failed"]
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Trace:
    """Filled in by the handlers, logged once by the door. Times are seconds of the door's clock."""

    id: str
    started: float
    key: Key | None = None  # with which the client came
    ignored: Sequence[str] = ()  # fields that nobody reads
    revoked: bool = False  # ended by its id
    model: str = ""  # served names only: what a client made up stays out
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0  # of these
    first_token: float | None = None
    queued: float | None = None  # seconds until the last of its sequences was computed for the first time
    finish: str = ""
    params: Mapping[str, str] = field(default_factory=dict)  # the core's fields by what the client calls them
    outcome: Outcome | None = None  # set by a handler that knows better than the status

    def tokens(self, count: int, now: float) -> None:
        """``count`` more tokens arrived."""
        if self.first_token is None:
            self.first_token = now
        self.completion_tokens += count

    def waited(self, seconds: float | None) -> None:
        """One of its sequences has; None: it was never computed."""
        if seconds is not None:
            self.queued = seconds if self.queued is None else max(self.queued, seconds)


def request_id(given: str | None) -> str:
    """The client's ``x-request-id`` where it is printable ASCII of at most 128 characters, else a new one."""
    if given and _PRINTABLE.fullmatch(given):
        return given
    return secrets.token_hex(16)


def outcome_of(status: int) -> Outcome:
    if status < 400:
        return "served"
    return "refused" if status < 500 or status == 503 else "failed"


def log_access(trace: Trace, *, method: str, path: str, status: int, now: float, quiet: bool) -> None:
    """One line, its fields for the forms of a log that know fields. ``quiet``: a probe, logged at debug."""
    level = logging.DEBUG if quiet else logging.INFO
    if not access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "id": trace.id,
        "method": method,
        "path": path[:200],
        "status": status,
        "outcome": trace.outcome or outcome_of(status),
        "ms": round((now - trace.started) * 1000, 1),
    }
    if trace.key is not None:
        fields["key"] = trace.key.name
    if trace.model:
        fields |= {
            "model": trace.model,
            "prompt_tokens": trace.prompt_tokens,
            "completion_tokens": trace.completion_tokens,
        }
    if trace.first_token is not None:
        fields["ttft_ms"] = round((trace.first_token - trace.started) * 1000, 1)
    if trace.finish:
        fields["finish"] = trace.finish
    access.log(level, "%s", logfmt.line(fields), extra={"fields": fields})
