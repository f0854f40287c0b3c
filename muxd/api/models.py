"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from muxd.api.context import find_model, shown_models
from muxd.api.replies import json_response
from muxd.api.serving import ServedModel
from muxd.api.times import zulu


def model_object(model: ServedModel) -> dict[str, Any]:
    """OpenAI's four keys; ``max_model_len``, ``root`` and ``parent`` as vLLM has them; ``status`` is ours."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "muxd",
        "root": model.name,
        "parent": model.base or None,
        "max_model_len": model.max_context,
        "status": model.state,
    }


async def list_models(request: web.Request) -> web.Response:
    models = shown_models(request)
    if "anthropic-version" in request.headers:
        return json_response(_anthropic_page(models))
    return json_response({"object": "list", "data": [one for model in models for one in _objects(model)]})


async def get_model(request: web.Request) -> web.Response:
    """The id is the rest of the path: it may contain slashes."""
    model = find_model(request, request.match_info["id"])
    shown = _anthropic_object if "anthropic-version" in request.headers else model_object
    return json_response(shown(model))


def _objects(model: ServedModel) -> Iterator[dict[str, Any]]:
    """The model, and one for each alias: clients offer what is in the list."""
    shown = model_object(model)
    yield shown
    for alias in model.aliases:
        yield shown | {"id": alias}


def _anthropic_page(models: Sequence[ServedModel]) -> dict[str, Any]:
    return {
        "data": [_anthropic_object(model) for model in models],
        "has_more": False,
        "first_id": models[0].name if models else None,
        "last_id": models[-1].name if models else None,
    }


def _anthropic_object(model: ServedModel) -> dict[str, Any]:
    made = zulu(datetime.fromtimestamp(model.created, UTC))
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": made,
        "capabilities": None,
        "max_input_tokens": model.max_context,
        "max_tokens": model.max_context,
    }
