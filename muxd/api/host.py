"""What is about the daemon and not about a model: health, version, metrics, an index."""

from importlib.metadata import version as installed_version

from aiohttp import web

from muxd.api.context import context
from muxd.api.models import json_response

VERSION = installed_version("muxd")
_ENDPOINTS = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "GET /v1/models",
    "POST /tokenize",
    "POST /detokenize",
    "GET /health",
    "GET /version",
    "GET /metrics",
)


async def index(request: web.Request) -> web.Response:
    """What is here, for a person with curl."""
    models = {name: model.state for name, model in context(request).serving.models().items()}
    return json_response({"name": "muxd", "version": VERSION, "models": models, "endpoints": _ENDPOINTS})


async def health(request: web.Request) -> web.Response:
    """200 or 503, no body. Also /ping, as SageMaker asks for it."""
    return web.Response(status=200 if context(request).serving.healthy else 503)


async def version(_: web.Request) -> web.Response:
    return json_response({"version": VERSION})


async def metrics(request: web.Request) -> web.Response:
    body, content_type = context(request).metrics.render()
    return web.Response(body=body, headers={"Content-Type": content_type})
