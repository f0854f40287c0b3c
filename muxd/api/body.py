"""The bytes of a request's body. The only reader of bodies; what they say is for ``muxd.api.reading``."""

import asyncio

from aiohttp import ClientPayloadError, hdrs, web

from muxd.api.context import context
from muxd.api.decoding import too_large
from muxd.errors import BadRequest, TooSlow

# What curl says of a body by itself, and many a script.
_UNSAID = ("application/x-www-form-urlencoded", "application/octet-stream", "text/plain")
_CODINGS = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def coding(request: web.Request) -> str:
    """The body's encoding: "", "gzip" or "deflate". Raises HTTPUnsupportedMediaType for any other, and for a
    content type that is no JSON.

    Programs need not say that it is JSON. Pages must: any page may send forms and plain text to any address
    without being asked, and browsers name the page then.
    """
    kind = request.content_type
    page = hdrs.ORIGIN in request.headers or "Sec-Fetch-Site" in request.headers
    if kind != "application/json" and not kind.endswith("+json") and (page or kind not in _UNSAID):
        raise web.HTTPUnsupportedMediaType(text=f"send Content-Type: application/json, not {kind}")
    given = request.headers.get("Content-Encoding", "").strip().lower()
    if given not in _CODINGS:
        raise web.HTTPUnsupportedMediaType(
            text=f"Content-Encoding {given[:40]!r} is not supported; send it plain, or as gzip or deflate"
        )
    return _CODINGS[given]


async def read_body(request: web.Request) -> bytes:
    """The whole body. Raises TooLarge above ``max_body``, BadRequest for a broken transfer, TooSlow when it
    takes too long, Overloaded where there is no room for it while it arrives."""
    here = context(request)
    if (request.content_length or 0) > here.max_body:
        raise too_large(here.max_body)  # before a byte of it is read
    data = bytearray()
    try:
        async with asyncio.timeout(here.limits.body_timeout):
            async for chunk in request.content.iter_any():
                here.arriving.take(len(chunk), len(data))
                data += chunk
                if len(data) > here.max_body:
                    raise too_large(here.max_body)
    except TimeoutError:
        seconds = here.limits.body_timeout
        raise TooSlow(f"the body of the request was not there within {seconds:g} s") from None
    except (ClientPayloadError, web.RequestPayloadError):
        raise BadRequest("the request body could not be read: broken transfer") from None
    finally:
        here.arriving.give_back(len(data))
    return bytes(data)
