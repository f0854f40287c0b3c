"""What the daemon's log looks like, on standard error: text for people, logfmt or JSON for programs. Used by
the muxd command.

Under systemd the journal stamps the time and reads the level from a ``<6>`` prefix, so both leave the text.
A record may carry ``fields``, as the access line does: programs get them one by one, people in its text.
Nothing here ever sees a prompt: the rooms that log do not pass one.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from muxd import logfmt
from muxd.config import LogFormat

# Levels of sd-daemon(3).
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def set_up(
    level: str,
    form: LogFormat = "text",
    *,
    stream: TextIO | None = None,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Log from ``level`` ("debug" ... "error") upwards; replaces what an earlier call set up."""
    handler = logging.StreamHandler(stream) if stream else _StandardError()
    handler.setFormatter(_lines(form, under_journal(stream or sys.stderr, env)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio's debug lines and aiohttp's own access log say nothing the access line does not.
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def under_journal(stream: TextIO, env: Mapping[str, str] = os.environ) -> bool:
    """Is ``stream`` the one systemd connected to the journal?

    $JOURNAL_STREAM alone does not say so: children inherit it and redirect their output. It names device and
    inode of the stream (systemd.exec(5)), which are compared.
    """
    try:
        device, inode = (int(part) for part in env.get("JOURNAL_STREAM", "").split(":"))
        found = os.fstat(stream.fileno())
    except (ValueError, OSError):  # unset or odd variable; a stream without a file
        return False
    return (found.st_dev, found.st_ino) == (device, inode)


class _StandardError(logging.StreamHandler[TextIO]):
    """Asks for ``sys.stderr`` at every line: while a progress bar is drawn, rich stands there and keeps the
    two apart."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass  # the base class's constructor sets it


class TextLines(logging.Formatter):
    """``2026-11-21 04:05:06 INFO    loaded smollm2 in 0.8 s``"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")


class FieldLines(logging.Formatter):
    """``time=... level=info logger=muxd.fleet msg="..."``, or the same as JSON; always one line a record."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields |= getattr(record, "fields", None) or {"msg": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields) if self._as_json else logfmt.line(fields)


class JournalLines(logging.Formatter):
    """``<6>loaded smollm2 in 0.8 s``; every line of a traceback carries the level."""

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in self._lines.format(record).splitlines())


def _lines(form: LogFormat, journal: bool) -> logging.Formatter:
    if form != "text":
        lines: logging.Formatter = FieldLines(as_json=form == "json")
        return JournalLines(lines) if journal else lines
    return JournalLines(logging.Formatter()) if journal else TextLines()
