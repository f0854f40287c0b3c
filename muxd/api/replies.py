"""Answers that are one JSON value, and who gives them."""

from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any

import msgspec
from aiohttp import web

VERSION = installed_version("muxd")
SERVER = f"muxd/{VERSION}"


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return encoded_response(msgspec.json.encode(value), status, headers)


def encoded_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """``body``: of JSON already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
