"""To which hosts a request goes, and in which order they are tried. Pure."""

from collections.abc import Sequence

from msgspec import Struct

from muxd.placement.waking import Rules, Standing, wake_seconds
from muxd.ray.reports import ModelReport

SLACK = 0.5  # seconds that a prompt waits longer where its beginning is known
_RESIDENT = ("ready", "restarting")
_COMING = ("waking", "loading")
_RULES = Rules(memory={}, host=0)


class Candidate(Struct, frozen=True):
    """A host that serves the model. Seconds: ``wait`` is predicted, ``wake`` comes before it where the model
    is not resident. ``known``: blocks of the prompt's beginning that it has computed. ``full``: without a
    free row."""

    host: str
    wait: float
    resident: bool = True
    wake: float = 0.0
    known: int = 0
    full: bool = False


def candidate(host: str, model: ModelReport, wait: float, known: int) -> Candidate | None:
    """None where waiting does not bring the model: it is unloaded, or has failed."""
    if model.state in _RESIDENT:
        return Candidate(host, wait, known=known, full=model.free_rows == 0)
    if model.state in _COMING:
        return Candidate(host, wait, resident=False)
    if model.state == "asleep":
        asleep = Standing("", 0, model.weights_bytes, ())
        return Candidate(host, wait, resident=False, wake=wake_seconds(asleep, _RULES, asleep=True))
    return None


def order(candidates: Sequence[Candidate], slack: float = SLACK) -> list[str]:
    """Every host once, the best first.

    Those where the model is resident by predicted wait, full ones after the others; before them the one that
    knows most of the prompt's beginning, unless it is full or its wait is longer than the shortest by more
    than ``slack``. Then those where it would have to wake, by what that takes: so nobody wakes a copy that
    another host makes needless.
    """
    residents = sorted((one for one in candidates if one.resident), key=_rank)
    others = sorted((one for one in candidates if not one.resident), key=lambda one: (one.wake, _rank(one)))
    if residents and (knowing := _knowing(residents, slack)) is not None:
        residents.remove(knowing)
        residents.insert(0, knowing)
    return [one.host for one in (*residents, *others)]


def _rank(one: Candidate) -> tuple[bool, float, str]:
    return one.full, one.wait, one.host


def _knowing(residents: Sequence[Candidate], slack: float) -> Candidate | None:
    free = [one for one in residents if not one.full]
    most = max((one.known for one in free), default=0)
    able = [one for one in free if one.known == most and one.wait <= free[0].wait + slack]
    return able[0] if most and able else None
