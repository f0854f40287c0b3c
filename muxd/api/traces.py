"""Whether requests are traced. OpenTelemetry, an extra, is imported where they are, and nowhere else."""

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry

from muxd.errors import ConfigError

if TYPE_CHECKING:
    from muxd.api.spans import Spans

SPANS: "web.AppKey[Spans]" = web.AppKey("spans")


def trace_requests(app: web.Application, url: str, registry: CollectorRegistry) -> None:
    """Until ``app`` is cleaned up; ``url`` as ``server.traces``, "": they are not. Raises ConfigError where
    the extra is not installed."""
    if not url:
        return
    try:
        from muxd.api.spans import Spans
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            "server.traces: needs OpenTelemetry, which is not installed: pip install 'muxd[otel]', or leave "
            "the setting out"
        ) from None
    spans = app[SPANS] = Spans(url, registry)

    async def close(_: web.Application) -> None:
        await asyncio.to_thread(spans.close)

    app.on_cleanup.append(close)
