"""The requests that are being answered, and DELETE /v1/requests/{id}, which ends one."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from muxd.api.context import context, trace
from muxd.api.guard import may_see_all
from muxd.api.replies import json_response
from muxd.api.trace import Trace
from muxd.errors import MuxdError, NotFound, RequestCancelled


@dataclass(frozen=True, eq=False)
class Handle:
    """One of them. ``owner``: the name of its key."""

    owner: str
    end: Callable[[], None]


class Running:
    """By each id that the client was told: the answer's, and ``x-request-id``, which may be used twice."""

    def __init__(self) -> None:
        self._handles: defaultdict[str, list[Handle]] = defaultdict(list)

    @contextmanager
    def hold(self, ids: set[str], handle: Handle) -> Iterator[None]:
        for id in ids:
            self._handles[id].append(handle)
        try:
            yield
        finally:
            for id in ids:
                self._handles[id].remove(handle)
                if not self._handles[id]:
                    del self._handles[id]

    def find(self, id: str) -> list[Handle]:
        return list(self._handles.get(id, ()))


@contextmanager
def by_id(request: web.Request, ids: set[str], end: Callable[[], None]) -> Iterator[None]:
    """While it is answered, DELETE with any of the ``ids`` makes it ``end`` its streams."""
    record = trace(request)

    def revoke() -> None:
        record.revoked = True
        end()

    owner = record.key.name if record.key is not None else ""
    with context(request).running.hold(ids, Handle(owner, revoke)):
        yield


def unfinished(record: Trace) -> MuxdError:
    """Why an answer has ended before its end; noted where it was ended by its id."""
    if record.revoked:
        record.outcome = "cancelled"
        return RequestCancelled("this request was cancelled by its id")
    return MuxdError("the answer ended without a reason", code="stream_ended")


async def cancel(request: web.Request) -> web.Response:
    """Whoever waits for the answer hears that it was cancelled."""
    id, key = request.match_info["id"], trace(request).key
    found = context(request).running.find(id)
    if not may_see_all(request):
        found = [one for one in found if key is not None and one.owner == key.name]
    if not found:
        raise NotFound(f"no request {id[:100]!r} is running", code="unknown_request")
    for handle in found:
        handle.end()
    return json_response({"id": id, "object": "request", "cancelled": len(found)})
