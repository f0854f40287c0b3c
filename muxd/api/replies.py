"""Answers that are one JSON value."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return encoded_response(msgspec.json.encode(value), status, headers)


def encoded_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """``body``: of JSON already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
