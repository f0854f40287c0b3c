"""What is about the daemon and not about a model: health, version, metrics, an index."""

from aiohttp import web

from muxd.api.context import context, find_model, shown_models
from muxd.api.guard import wants_page
from muxd.api.page import front
from muxd.api.replies import VERSION, json_response


async def index(request: web.Request) -> web.Response:
    """What is here, for a person with curl; for a browser the page."""
    if wants_page(request):
        return front(request)
    models = {model.name: model.state for model in shown_models(request)}
    endpoints = [f"{route.method} {route.path}" for route in context(request).routes]
    about = {"name": "muxd", "version": VERSION, "models": models, "endpoints": endpoints}
    return json_response(about, headers={"Vary": "Accept"})


async def health(request: web.Request) -> web.Response:
    """200 while muxd takes requests, 503 when it stops, is drained, or every model has failed; each model's
    state. Also /ping, as SageMaker asks for it."""
    serving = context(request).serving
    states = {name: model.state for name, model in serving.models().items()}
    failed = bool(states) and set(states.values()) == {"failed"}
    status = "failed" if failed else serving.taking
    return json_response({"status": status, "models": states}, 200 if status == "ok" else 503)


async def ready(request: web.Request) -> web.Response:
    """200 when this model is served, though it may have to wake first, else 503: for load balancers that look
    after one model."""
    serving = context(request).serving
    model = find_model(request, request.match_info["id"])
    serves = serving.taking == "ok" and model.state in ("ready", "asleep", "waking")
    return json_response({"status": model.state}, 200 if serves else 503)


async def version(_: web.Request) -> web.Response:
    return json_response({"version": VERSION})


async def metrics(request: web.Request) -> web.Response:
    body, content_type = context(request).metrics.render()
    return web.Response(body=body, headers={"Content-Type": content_type})
