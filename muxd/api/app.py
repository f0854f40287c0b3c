"""The aiohttp application: routes and wiring. ``muxd.daemon`` makes one and runs it with ``make_runner``."""

import logging
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web

from muxd.api.arriving import Arriving
from muxd.api.context import CONTEXT, Context
from muxd.api.door import door, sign
from muxd.api.errors import Discreet
from muxd.api.guests import LINE, GuestRunner, HttpLimits
from muxd.api.keys import Keys
from muxd.api.metrics import HttpMetrics
from muxd.api.routes import ROUTES, all_routes
from muxd.api.running import Running
from muxd.api.serving import Serving, Texts
from muxd.clock import Clock, MonotonicClock


def make_app(
    serving: Serving,
    *,
    max_body: int,
    metrics: HttpMetrics,
    texts: Texts,
    clock: Clock | None = None,
    limits: HttpLimits | None = None,
    keys: Path | None = None,
    cors_origins: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
    strict: bool = False,
) -> web.Application:
    """``max_body`` in bytes; ``keys``: the file of those who may come in. Raises ConfigError where that
    cannot be used. Run it with ``make_runner``, or clients that go away are noticed too late."""
    app = web.Application(middlewares=[door], client_max_size=max_body)
    limits = limits or HttpLimits()
    arriving = Arriving(limits.body_memory)
    clock = clock or MonotonicClock()
    app[CONTEXT] = Context(
        serving,
        metrics,
        clock,
        max_body,
        texts,
        limits,
        arriving,
        tuple(ROUTES),
        Running(),
        Keys(keys, clock) if keys is not None else None,
        frozenset(cors_origins),
        frozenset(name.lower() for name in allowed_hosts),
        strict,
    )
    app.on_response_prepare.append(sign)
    app.add_routes(all_routes())
    return app


def make_runner(app: web.Application, *, shutdown_timeout: float = 60.0) -> web.AppRunner:
    """The runner muxd needs: a handler is cancelled the moment its client goes away; our own logs only."""
    return GuestRunner(
        app,
        app[CONTEXT].limits,
        handler_cancellation=True,
        auto_decompress=False,  # takes long, so text processes do it
        access_log=None,
        logger=Discreet(logging.getLogger("muxd.api")),
        shutdown_timeout=shutdown_timeout,
        max_line_size=LINE,
        max_field_size=LINE,
    )
