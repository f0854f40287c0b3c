"""What of a request routing looks at: who may answer it, its model, how its prompt begins. Pure.

Nothing is checked here and nothing is changed: a host that gets the request says what is wrong with it.
"""

import re
from typing import Literal
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import Raw, Struct

from muxd.api.decoding import unpack
from muxd.api.ollama.schemas import OLLAMA_TAG
from muxd.api.routes import ROUTES, Route
from muxd.errors import MuxdError
from muxd.pool.prefix import Chain

# model: a host that has it; any: any host; all: their lists together; search: whoever knows the id; own: the
# ingress; host: nobody but the host itself, at its own address.
Reach = Literal["model", "any", "all", "search", "own", "host"]

_REACH: dict[str, Reach] = {
    "GET /": "own",
    "GET /health": "own",
    "GET /ping": "own",
    "POST /ping": "own",
    "GET /version": "any",
    "GET /api/version": "any",
    "GET /openapi.json": "any",
    "GET /v1/models": "all",
    "GET /api/tags": "all",
    "GET /api/ps": "all",
    "GET /v1/models/{id:.+}": "model",
    "GET /health/{id:.+}": "model",
    "GET /tokenizer_info": "model",
    "DELETE /v1/requests/{id}": "search",
    "GET /api/why/{id:.+}": "search",
}
_BLOCK = 128  # bytes of a prompt's JSON; a row of muxd is 8 to 32 tokens
_LOOKED_AT = 32 * _BLOCK  # bytes: prompts that begin alike for so long count as alike
_MOST = 64 << 20  # bytes of an unpacked body that are looked at


class Asked(Struct, frozen=True):
    """``model`` "": it was not said, or cannot be read. ``keys``: of the prompt's blocks from its
    beginning."""

    reach: Reach
    model: str = ""
    keys: tuple[bytes, ...] = ()


class _Body(Struct):
    """In the order in which templates put them."""

    model: str = ""
    tools: Raw = Raw(b"")
    system: Raw = Raw(b"")
    instructions: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    input: Raw = Raw(b"")
    messages: Raw = Raw(b"")


_body = msgspec.json.Decoder(_Body)


def asked(method: str, path: str, query: str, body: bytes, coding: str) -> Asked | None:
    """None where no host serves the path, which is as the client has written it. ``coding``: of the body, as
    its Content-Encoding says."""
    found = _route(method, unquote(path))
    if found is None:
        return None
    route, id = found
    if route.body is not None:
        return _of_body(body, coding)
    reach = reach_of(route)
    if reach != "model":
        return Asked(reach)
    return Asked(reach, id or next(iter(parse_qs(query).get("model", [])), ""))


def reach_of(route: Route) -> Reach:
    if route.body is not None:
        return "model"
    return _REACH.get(f"{route.method} {route.path}", "host")


def plain_name(model: str) -> str:
    """Without Ollama's tag."""
    return model.removesuffix(OLLAMA_TAG)


def _of_body(body: bytes, coding: str) -> Asked:
    try:
        said = _body.decode(unpack(body, coding.strip().lower().removeprefix("x-"), _MOST))
    except (MuxdError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Asked("model")
    parts = (said.tools, said.system, said.instructions, said.prompt, said.input, said.messages)
    text = b"".join(bytes(part)[:_LOOKED_AT] for part in parts)[:_LOOKED_AT]
    keys = Chain(plain_name(said.model), _BLOCK).keys(list(text), len(text))
    return Asked("model", said.model, tuple(keys))


def _pattern(path: str) -> "re.Pattern[str]":
    named = re.sub(r"\\\{(\w+)(?::\\\.\\\+)?\\\}", lambda hit: _part(hit), re.escape(path))
    return re.compile(named)


def _part(hit: "re.Match[str]") -> str:
    return f"(?P<{hit[1]}>.+)" if ":" in hit[0] else f"(?P<{hit[1]}>[^/]+)"


_TABLE = [(route, _pattern(path)) for route in ROUTES for path in route.paths()]


def _route(method: str, path: str) -> tuple[Route, str] | None:
    wanted = "GET" if method == "HEAD" else method
    for route, pattern in _TABLE:
        if route.method == wanted and (hit := pattern.fullmatch(path)):
            return route, hit.groupdict().get("id", "")
    return None
