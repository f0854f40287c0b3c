"""The files of the page, as they lie in this package."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

INDEX = "index.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


PAGE_TYPES = tuple(_TYPES.values())


@dataclass(frozen=True)
class PageFile:
    """One of them. ``etag`` changes with the bytes."""

    body: bytes
    content_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """By name; read once."""
    found = {}
    for one in files("muxd.watch").joinpath("page").iterdir():
        content_type = _TYPES.get("." + one.name.rpartition(".")[2])
        if content_type is not None:
            body = one.read_bytes()
            found[one.name] = PageFile(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found
