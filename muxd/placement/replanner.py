"""Replanning while requests come: what the daemon and the simulator ask at every look. Pure."""

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from muxd.errors import ConfigError
from muxd.placement.appraiser import Appraiser, canonical
from muxd.placement.problem import Layout
from muxd.placement.replan import Decision, Policy, decide, propose
from muxd.placement.sets import Sets

_EAGER = 1e-9  # least gain of a plan that somebody asked for


class Watch(Struct, frozen=True):
    """How rates are watched, in seconds. ``surprise``: see ``Rates``.

    ``headroom``: plans are made for so many times the rates, as a mesh that can just serve the mean never
    gets rid of a queue.
    """

    period: float = 5.0  # between two looks
    memory: float = 60.0
    surprise: float = 4.0
    headroom: float = 1.2


class View(Struct, frozen=True):
    """What a look sees. ``sets`` may forbid some; ``pinned``: model -> host; ``anew``: a layout from nothing,
    for when the present one does not fit."""

    appraiser: Appraiser  # at the rates to plan for
    present: Layout
    sets: Sets | None = None
    pinned: Mapping[int, int] | None = None
    anew: Callable[[], Layout] | None = None


Viewer = Callable[[Mapping[str, float]], View]  # of the rates to plan for


class Replanner:
    """``look`` every ``Watch.period``. Remembers when models last moved."""

    def __init__(self, policy: Policy, headroom: float = Watch().headroom):
        self._policy, self._headroom = policy, headroom
        self._moved = float("-inf")

    def look(self, rates: Mapping[str, float], view: Viewer, now: float, *, asked: bool = False) -> Decision:
        """What should rule from now on, ``rates`` measured.
        ``asked``: somebody does, so neither the cooldown nor ``least_gain`` counts.

        Nothing is remembered: whoever moves models says so (``moved``). Raises ConfigError where costs are
        not known, or the present layout does not fit and the view has none ``anew``.
        """
        policy = self._policy
        if asked:
            policy = msgspec.structs.replace(policy, least_gain=_EAGER, cooldown=0.0)
        seen = view({name: rate * self._headroom for name, rate in rates.items()})
        proposed = _proposed(seen, policy)
        return decide(seen.appraiser, seen.present, proposed, policy, now - self._moved, seen.pinned)

    def moved(self, now: float) -> None:
        """Models move by a decision: the cooldown begins."""
        self._moved = now


def _proposed(seen: View, policy: Policy) -> Layout:
    try:
        return propose(seen.appraiser, seen.present, policy, seen.sets, seen.pinned)
    except (ConfigError, ValueError):  # it does not fit by the plan's reckoning
        if seen.anew is None:
            raise
        return canonical(seen.anew())
