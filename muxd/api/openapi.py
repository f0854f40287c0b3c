"""GET /openapi.json: the routes, with the bodies that they take as msgspec knows them."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from muxd.api.context import context
from muxd.api.described import Described, plain
from muxd.api.replies import VERSION, json_response

_REF = "#/components/schemas/{name}"
_TEXT = {"type": "string"}
# Others are text. Of a stream each event is described: before OpenAPI 3.2 there is no word for the whole.
_ANY = {
    "application/json": {"type": "object"},
    "text/event-stream": {
        "type": "object",
        "properties": {"event": _TEXT, "data": _TEXT},
        "required": ["data"],
    },
}
_ERRORS = {
    "default": {
        "description": "An error object in the shape of the API that the path belongs to",
        "content": {"application/json": {"schema": _ANY["application/json"]}},
    }
}


async def openapi(request: web.Request) -> web.Response:
    return json_response(document(context(request).routes))


@cache
def document(routes: tuple[Described, ...]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    bodies = list(dict.fromkeys(route.body for route in routes if route.body is not None))
    schemas, components = msgspec.json.schema_components(bodies, ref_template=_REF)
    known = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = plain(route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, known)
    about = {"title": "muxd", "version": VERSION, "description": "Many LLMs on one host's GPUs"}
    return {
        "openapi": "3.1.0",
        "info": about,
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Described, path: str, schemas: dict[type[Struct], Any]) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{route.method.lower()}_{path}").strip("_")
    made: dict[str, Any] = {"operationId": name, "summary": route.summary}
    if parameters := list(_parameters(path)):
        made["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        made["requestBody"] = {"required": True, "content": content}
    content = {kind: {"schema": _ANY.get(kind, _TEXT)} for kind in route.answers}
    return made | {"responses": {"200": {"description": "Done", "content": content}, **_ERRORS}}


def _parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
