"""How many sequences a model has now, for who tells it: muxctl, /metrics, the feed."""

from collections.abc import Iterable
from typing import NamedTuple

from muxd.engine.lane import Lane
from muxd.fleet.adapters import Adapter
from muxd.fleet.catalog import Entry
from muxd.fleet.site import Site


class Counts(NamedTuple):
    """Sequences that hold rows, and that hold none yet."""

    running: int
    waiting: int


def asked(sites: Iterable[Site], model: Entry | Adapter) -> Counts:
    """At all devices together: while it moves it has two. Of an adapter those that ask for it alone."""
    if isinstance(model, Adapter):
        own = [
            one for _, lane in lanes(sites, model.base) for one in lane.sequences() if one.name == model.name
        ]
        running = sum(bool(one.rows) for one in own)
        return Counts(running, len(own) - running)
    held = [lane for _, lane in lanes(sites, model.name)]
    return Counts(sum(lane.admitted for lane in held), sum(lane.queued for lane in held))


def lanes(sites: Iterable[Site], model: str) -> list[tuple[Site, Lane]]:
    """The lanes the model has, more than one only while it moves."""
    return [(site, lane) for site in sites if (lane := site.unit.lanes.get(model)) is not None]
