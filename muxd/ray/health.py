"""Which hosts get no requests, and why. Pure; times are passed in."""

from msgspec import Struct

from muxd.ray.reports import Seen

STALE = 5.0  # seconds without a report: the node is lost, or cut off
_FIRST, _LONGEST = 1.0, 30.0  # seconds that a host is left alone which did not answer


class _Failures(Struct):
    count: int
    until: float


class Health:
    """Reports say what a host thinks of itself; that it does not answer is only seen by who asks it."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failures] = {}

    def failed(self, host: str, now: float) -> None:
        """It could not be reached, or broke off. Those that were under way together count once."""
        before = self._failures.get(host)
        if before is not None and now < before.until:
            return
        count = before.count + 1 if before else 1
        self._failures[host] = _Failures(count, now + min(_LONGEST, _FIRST * 2 ** (count - 1)))

    def answered(self, host: str) -> None:
        self._failures.pop(host, None)

    def why_out(self, seen: Seen, now: float) -> str:
        """ "" while it gets requests. When its time is over a host that failed is tried again."""
        if lost(seen):
            return f"no report for {seen.age:.0f} s"
        if seen.report.taking != "ok":
            return seen.report.taking
        failures = self._failures.get(seen.report.host)
        if failures is not None and now < failures.until:
            return "it did not answer"
        return ""

    def forget(self, host: str) -> None:
        self._failures.pop(host, None)


def lost(seen: Seen) -> bool:
    """What it was asked will not be answered."""
    return seen.age > STALE
