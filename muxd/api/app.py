"""The aiohttp application: routes and wiring. ``muxd.daemon`` makes one and runs it with ``make_runner``."""

import logging

from aiohttp import web

from muxd.api import about, models
from muxd.api.arriving import Arriving
from muxd.api.chat import chat
from muxd.api.completions import completions
from muxd.api.context import CONTEXT, Context
from muxd.api.door import door, sign
from muxd.api.embeddings import embeddings, rerank, score
from muxd.api.errors import Discreet
from muxd.api.guests import GuestRunner, HttpLimits
from muxd.api.metrics import HttpMetrics
from muxd.api.serving import Serving, Texts
from muxd.api.tokenize import detokenize, tokenize
from muxd.clock import Clock, MonotonicClock


def make_app(
    serving: Serving,
    *,
    max_body: int,
    metrics: HttpMetrics,
    texts: Texts,
    clock: Clock | None = None,
    limits: HttpLimits | None = None,
) -> web.Application:
    """``max_body`` in bytes. Run it with ``make_runner``, or clients that go away are noticed too late."""
    app = web.Application(middlewares=[door], client_max_size=max_body)
    limits = limits or HttpLimits()
    arriving = Arriving(limits.body_memory)
    app[CONTEXT] = Context(serving, metrics, clock or MonotonicClock(), max_body, texts, limits, arriving)
    app.on_response_prepare.append(sign)
    app.add_routes(
        [
            web.get("/", about.index),
            web.get("/health", about.health),
            web.get("/health/{id:.+}", about.ready),
            web.get("/ping", about.health),
            web.post("/ping", about.health),
            web.get("/version", about.version),
            web.get("/metrics", about.metrics),
            web.get("/v1/models", models.list_models),
            web.get("/v1/models/{id:.+}", models.get_model),
            web.post("/v1/chat/completions", chat),
            web.post("/v1/completions", completions),
            web.post("/v1/embeddings", embeddings),
            web.post("/v1/rerank", rerank),
            web.post("/v1/score", score),
            web.post("/tokenize", tokenize),
            web.post("/detokenize", detokenize),
        ]
    )
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
    )
