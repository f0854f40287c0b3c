"""Who ran and who waited for a core between two tokens of a stream: the ``--trace`` of ``load_beside.py``.

Linux counts for every thread the nanoseconds that it ran, and those that it could have run and had no core
(/proc/PID/task/TID/schedstat). They are read at every token, of all threads of a daemon, of what it has
started and of the process that asks; this takes some tenths of a millisecond of the latter, in each gap. One
is long beyond ``LONG`` times the median of the quiet ones; what it lost is put down to whoever ran or waited
longest beyond what is usual. Where nobody did, all waited for each other, for the interpreter's lock, or for
the machine below. "On one core": of 100 gaps, those after which all threads that had computed were on one.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
from msgspec import Struct

LONG = 1.5  # times the median of the quiet gaps
_WORTH = 0.25  # of what a gap lost: whoever has less is not why
_LOOK = 0.05  # seconds between looks for new threads
_WORKED = 2_000_000  # nanoseconds in a gap: the thread had a part in the step
_TITLE = "muxd:"
_ROLES = {"text": "text", "zygote": "zygote", "weights": "weights"}  # by title; other titles are models'
LOOP, THREADS, STREAM, CLIENT = "daemon's loop", "daemon's threads", "stream's worker", "client"
WHY = {  # what is looked at beyond what is usual, and what it means
    (STREAM, 1): "its worker waited for a core",
    (LOOP, 1): "the daemon's loop waited for a core",
    (CLIENT, 1): "who reads the stream waited for a core",
    (STREAM, 0): "its worker computed longer",
    (LOOP, 0): "the daemon's loop computed",
    (THREADS, 0): "threads of the daemon computed",
    (CLIENT, 0): "who reads the stream computed",
}
NOBODY = "nobody ran or waited longer"

Times = Mapping[str, tuple[float, float]]  # of each role: ms it ran, ms it waited for a core


class Gap(Struct, frozen=True):
    """Between two tokens; seconds of ``time.perf_counter``."""

    begin: float
    end: float
    times: Times
    together: bool = False  # the threads of the stream's worker were on one core

    @property
    def ms(self) -> float:
        return 1e3 * (self.end - self.begin)


class Threads:
    """Of this process, the daemon ``daemon``, and all that it has started, by what they do; ``model``: of the
    stream."""

    def __init__(self, daemon: int, model: str):
        self._daemon, self._title = daemon, f"{_TITLE}{model}"[:15]
        self._files: dict[int, int] = {}  # thread -> descriptor of its schedstat
        self.together = False  # see ``Gap``, of what ``took`` told last
        self._roles: dict[int, str] = {}
        self._last: dict[int, tuple[int, int]] = {}
        self._look = 0.0  # when to look for new ones
        self.took()

    def took(self) -> Times:
        """Since it was asked last; what has begun since counts from its beginning, when it is found."""
        if time.perf_counter() >= self._look:
            self._find()
            self._look = time.perf_counter() + _LOOK
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        worked: list[int] = []
        for thread in list(self._files):
            try:
                ran, waited, _ = map(int, os.pread(self._files[thread], 64, 0).split())
            except (OSError, ValueError):  # it has ended
                self._forget(thread)
                continue
            before = self._last.get(thread, (0, 0))
            self._last[thread] = ran, waited
            role = self._roles[thread]
            times = found[role]
            if role == STREAM and ran - before[0] > _WORKED:
                worked.append(thread)
            times[0] += (ran - before[0]) / 1e6
            times[1] += (waited - before[1]) / 1e6
        self.together = len(worked) > 1 and len({_core(thread) for thread in worked}) == 1
        return {role: (ran, waited) for role, (ran, waited) in found.items()}

    def close(self) -> None:
        for thread in list(self._files):
            self._forget(thread)

    def _forget(self, thread: int) -> None:
        os.close(self._files.pop(thread))
        self._last.pop(thread, None)

    def _find(self) -> None:
        own = os.getpid()
        for process in [own, *_below(self._daemon)]:
            with suppress(OSError):
                for entry in os.listdir(f"/proc/{process}/task"):
                    self._take(process, int(entry), CLIENT if process == own else self._role(process))

    def _take(self, process: int, thread: int, role: str) -> None:
        if thread != process and role not in (STREAM, CLIENT):
            role = THREADS if role == LOOP else f"{role}, not its main thread"
        self._roles[thread] = role  # a process gets its title after its first thread
        if thread not in self._files:
            with suppress(OSError):
                self._files[thread] = os.open(f"/proc/{process}/task/{thread}/schedstat", os.O_RDONLY)

    def _role(self, process: int) -> str:
        if process == self._daemon:
            return LOOP
        title = Path(f"/proc/{process}/comm").read_text().strip()
        if not title.startswith(_TITLE):
            return "a process that starts"
        if title == self._title:
            return STREAM
        return _ROLES.get(title.removeprefix(_TITLE), "the new worker")


def _core(thread: int) -> int:
    """Where it runs, or ran last."""
    with suppress(OSError):
        return int(Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[36])
    return -1


def _below(process: int) -> Iterator[int]:
    """It, and what it has started, and so on."""
    yield process
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError):
                for child in Path(f"/proc/{process}/task/{thread}/children").read_text().split():
                    yield from _below(int(child))


class Trace:
    """``token`` at each of them, from one thread; ``report`` at the end."""

    def __init__(self, daemon: int, model: str):
        self._threads, self._gaps = Threads(daemon, model), list[Gap]()
        self._last = 0.0

    def token(self, now: float) -> None:
        times = self._threads.took()
        if self._last:
            self._gaps.append(Gap(self._last, now, times, self._threads.together))
        self._last = now

    def report(self, phases: Mapping[str, Sequence[tuple[float, float]]], quiet: str) -> dict[str, object]:
        """``phases``: what went on when, seconds of ``time.perf_counter``; a gap belongs to where it began.
        ``quiet``: the one that says what is usual."""
        self._threads.close()
        inside = {name: [gap for gap in self._gaps if _in(gap, spans)] for name, spans in phases.items()}
        usual = usual_of(inside[quiet])
        told: dict[str, object] = {name: _told(gaps, usual) for name, gaps in inside.items()}
        return {"usual gap, ms": round(usual.ms, 2), "long beyond, ms": round(LONG * usual.ms, 2), **told}


class Usual(Struct, frozen=True):
    """Of quiet gaps: medians."""

    ms: float
    times: Times


def usual_of(gaps: Sequence[Gap]) -> Usual:
    """Raises ValueError without any."""
    if not gaps:
        raise ValueError("no gap was quiet: let the stream run for longer (--seconds)")
    roles = {role for gap in gaps for role in gap.times}
    times = {
        role: (
            median(gap.times.get(role, (0.0, 0.0))[0] for gap in gaps),
            median(gap.times.get(role, (0.0, 0.0))[1] for gap in gaps),
        )
        for role in roles
    }
    return Usual(median(gap.ms for gap in gaps), times)


def cause(gap: Gap, usual: Usual) -> str:
    """Why it was long."""
    beyond = {
        why: gap.times.get(role, (0.0, 0.0))[which] - usual.times.get(role, (0.0, 0.0))[which]
        for (role, which), why in WHY.items()
    }
    most = max(beyond, key=lambda why: beyond[why])
    return most if beyond[most] >= _WORTH * (gap.ms - usual.ms) else NOBODY


def _in(gap: Gap, spans: Iterable[tuple[float, float]]) -> bool:
    return any(begin <= gap.begin <= end for begin, end in spans)


def _told(gaps: Sequence[Gap], usual: Usual) -> dict[str, object]:
    long = [gap for gap in gaps if gap.ms > LONG * usual.ms]
    told: dict[str, object] = {"gaps": len(gaps), "long": len(long)}
    if not gaps:
        return told
    told |= {"p99": round(float(np.percentile([gap.ms for gap in gaps], 99)), 1)}
    told |= {"on one core": round(100 * sum(gap.together for gap in gaps) / len(gaps), 1)}
    told |= {
        "ms of 1,000 lost in long ones": round(1e3 * _lost(long, usual) / sum(gap.ms for gap in gaps), 1)
    }
    if long:
        why = Counter(cause(gap, usual) for gap in long)
        told |= {"because": dict(why.most_common()), "ran, ms each": _mean(long, 0)}
        told |= {"long ones on one core": round(100 * sum(gap.together for gap in long) / len(long), 1)}
        told |= {"waited for a core, ms each": _mean(long, 1)}
        told |= {"worst": [round(gap.ms, 1) for gap in sorted(long, key=lambda gap: -gap.ms)[:5]]}
    return told


def _lost(long: Sequence[Gap], usual: Usual) -> float:
    return sum(gap.ms - usual.ms for gap in long)


def _mean(gaps: Sequence[Gap], which: int) -> dict[str, float]:
    """Of each role that had a tenth of a millisecond of a gap or more."""
    sums: dict[str, float] = defaultdict(float)
    for gap in gaps:
        for role, times in gap.times.items():
            sums[role] += times[which]
    dearest = sorted(sums.items(), key=lambda one: -one[1])
    means = {role: round(ms / len(gaps), 1) for role, ms in dearest}
    return {role: ms for role, ms in means.items() if ms >= 0.1}
