"""Fields that nobody here reads: named to whoever sends them, and refused where the operator is strict."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import msgspec
from msgspec import Raw, Struct

from muxd.api.decoding import decode
from muxd.errors import BadRequest

MOST = 16  # that are named
# About the client's books or the server's speed: an answer is the same without them.
NOTHING = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "request_id", "betas", "client_metadata"),
    }
)
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)
_top = msgspec.json.Decoder(dict[str, Raw])


def ignored(data: bytes, body: type[Struct], inner: Iterable[tuple[str, type[Struct]]] = ()) -> list[str]:
    """Names of the fields of ``data`` that ``body`` does not have. ``inner``: of objects in it, too."""
    given = decode(data, _top)
    found = _unknown(given, body, "")
    for name, kind in inner:
        raw = given.get(name)
        if raw is not None and bytes(raw).lstrip().startswith(b"{"):
            found += _unknown(decode(bytes(raw), _top), kind, f"{name}.")
    return found[:MOST]


def refuse_ignored(names: list[str], known: Iterable[str]) -> None:
    """Raises BadRequest about the first of the names."""
    for name in names:
        near = get_close_matches(name, known, 1)
        more = f"; did you mean {near[0]!r}?" if near else "; leave it out"
        raise BadRequest(f"{name}: there is no such field (server.strict){more}", param=name)


def _unknown(given: dict[str, Raw], body: type[Struct], prefix: str) -> list[str]:
    known = {field.encode_name for field in msgspec.structs.fields(body)}
    return [
        prefix + name
        for name, value in given.items()
        if name not in known
        and not (not prefix and name in NOTHING)
        and _NAME.fullmatch(name)
        and bytes(value) != b"null"
    ]
