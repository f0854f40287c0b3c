"""How long a model takes to wake, learnt from its own wakes. Pure.

What the rules state (bytes over rates, ``waking.Rules``) is a guess about the machine; what was measured goes
before it, smoothed, and never further off than ``BOUND`` times: neither a wake beside other work, nor a file
that says what cannot be, may have a model keep its place, and others wait, for much longer than was stated.
"""

from msgspec import Struct
from msgspec.structs import replace

from muxd.engine.learnt import Amount

BOUND = 8.0  # by so much less, or more, than is stated a wake is believed to take
_NEW = 0.3  # weight of the newest one


class Wakes(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model on one device: seconds from the beginning of a wake until its first request is begun, with
    weights that were ``parked`` in host memory, and with ``cold`` ones. 0: none was seen."""

    parked: Amount = 0.0
    cold: Amount = 0.0

    def seconds(self, stated: float, *, parked: bool) -> float:
        """What the next one takes; ``stated``: what the rules say of it."""
        seen = self.parked if parked else self.cold
        return _bounded(seen, stated) if seen else stated

    def after(self, seconds: float, stated: float, *, parked: bool) -> "Wakes":
        """With one wake more, which took so many seconds."""
        seen, now = self.parked if parked else self.cold, _bounded(seconds, stated)
        if seen:
            before = _bounded(seen, stated)
            now = before + _NEW * (now - before)
        return replace(self, parked=now) if parked else replace(self, cold=now)


def _bounded(seconds: float, stated: float) -> float:
    return min(max(seconds, stated / BOUND), stated * BOUND)
