"""GET /v1/models and /v1/models/{id}."""

from typing import Any

import msgspec
from aiohttp import web

from muxd.api.context import context, find_model
from muxd.api.serving import ServedModel


def model_object(model: ServedModel) -> dict[str, Any]:
    """OpenAI's four keys; ``max_model_len``, ``root`` and ``parent`` as vLLM has them; ``status`` is ours."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "muxd",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_context,
        "status": model.state,
    }


async def list_models(request: web.Request) -> web.Response:
    models = [model_object(model) for model in context(request).serving.models().values()]
    return json_response({"object": "list", "data": models})


async def get_model(request: web.Request) -> web.Response:
    """The id is the rest of the path: it may contain slashes."""
    return json_response(model_object(find_model(context(request).serving, request.match_info["id"])))


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
