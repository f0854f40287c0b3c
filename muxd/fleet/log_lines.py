"""The daemon's last log lines, for whoever asks over the local door: neither journal nor file is needed."""

import asyncio
import logging
from contextlib import suppress

from msgspec import Struct

from muxd.fleet.ring import Ring

KEPT = 2000
_FORM = logging.Formatter()  # the text alone, with its traceback


class LogLine(Struct, frozen=True):
    """One record. ``time``: seconds since 1970. ``level``: "info" and so on."""

    number: int  # ascending, without gaps
    time: float
    level: str
    text: str


class LogLines(logging.Handler):
    """Of the level that is set for all of the log. Records may come from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__()
        self.ring: Ring[LogLine] = Ring(KEPT)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        text = _FORM.format(record)
        with suppress(RuntimeError):  # the loop is closed: the last words go to standard error alone
            self._loop.call_soon_threadsafe(self._add, record.created, record.levelname.lower(), text)

    def _add(self, time: float, level: str, text: str) -> None:
        self.ring.add(lambda number: LogLine(number, time, level, text))
