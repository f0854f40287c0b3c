"""From one picture to the next: what differs, and what that makes of the first. Pure.

Whoever has a picture and every change since has the daemon's own. The page does the same in
``page/state.js``.
"""

from collections.abc import Mapping
from typing import TypeVar

from msgspec import UNSET, Struct
from msgspec.structs import replace

from muxd.watch.schemas import Change, Picture, WorkView

WINDOW = 300.0  # seconds of batches
RAN, MARKS, EVENTS, POINTS = 6000, 500, 200, 120  # the most that a picture has of each

Row = TypeVar("Row", bound=Struct)


def difference(before: Picture, after: Picture) -> Change:
    """Of the tables alone: daemon, devices, models and requests."""
    return Change(
        after.time,
        UNSET if after.daemon == before.daemon else after.daemon,
        _rows(before.devices, after.devices),
        _rows(before.models, after.models),
        _rows(before.requests, after.requests),
    )


def empty(change: Change) -> bool:
    """Nothing but time has passed."""
    return change == Change(change.time)


def apply(picture: Picture, change: Change) -> Picture:
    """The next picture, no longer than a picture may be."""
    tokens = picture.tokens
    for passed in change.tokens:
        tokens = {
            name: [*tokens.get(name, ()), passed.get(name, 0.0)][-POINTS:]
            for name in dict.fromkeys((*tokens, *passed))
        }
    ran = picture.ran if not change.ran else [*picture.ran, *change.ran]
    return replace(
        picture,
        time=change.time,
        daemon=picture.daemon if change.daemon is UNSET else change.daemon,
        devices=_applied(picture.devices, change.devices),
        models=_applied(picture.models, change.models),
        requests=_applied(picture.requests, change.requests),
        ran=_recent(ran, change.time),
        marks=[*picture.marks, *change.marks][-MARKS:],
        events=[*picture.events, *change.events][-EVENTS:],
        tokens=tokens,
    )


def _recent(ran: list[WorkView], now: float) -> list[WorkView]:
    if len(ran) <= RAN and (not ran or ran[0].end >= now - WINDOW):
        return ran
    return [one for one in ran[-RAN:] if one.end >= now - WINDOW]


def _rows(before: Mapping[str, Row], after: Mapping[str, Row]) -> dict[str, Row | None]:
    changed: dict[str, Row | None] = {
        name: row for name, row in after.items() if name not in before or before[name] != row
    }
    return changed | dict.fromkeys(before.keys() - after.keys())


def _applied(rows: Mapping[str, Row], changed: Mapping[str, Row | None]) -> dict[str, Row]:
    if not changed:
        return dict(rows)
    both = {**rows, **changed}
    return {name: row for name, row in both.items() if row is not None}
