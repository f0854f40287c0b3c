"""Targets a model is measured against, and how many requests met them. Pure: no clock, no I/O.

Written by ``engine/observer.py`` when a request ends, read by muxctl through it. ``engine/forecast.py``
refuses by the same targets.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import Literal, Self

from msgspec import Struct

from muxd.config import ModelConfig

Outcome = Literal["served", "refused", "cancelled", "failed"]
Target = Literal["ttft", "tpot"]

_ROLLING = 1000  # requests


class Slo(Struct, frozen=True):
    """Seconds to the first token after arrival, and seconds a token after it; 0: no target."""

    ttft: float = 0.0
    tpot: float = 0.0

    @classmethod
    def of(cls, model: ModelConfig) -> Self:
        """As configured."""
        return cls(model.ttft_slo, model.tpot_slo)

    @property
    def targets(self) -> list[Target]:
        """Those that are set."""
        return [name for name, value in (("ttft", self.ttft), ("tpot", self.tpot)) if value]  # type: ignore[misc]


class Course(Struct, frozen=True):
    """How a request went. ``ttft`` is None without a token, ``tpot`` (mean gap) with fewer than two."""

    outcome: Outcome
    age: float  # seconds from arrival to the end
    ttft: float | None = None
    tpot: float | None = None


class Verdict(Struct, frozen=True):
    """Whether each target was met; None where it is not set or could not be judged."""

    ttft: bool | None
    tpot: bool | None
    good: bool  # served within every target

    def items(self) -> list[tuple[Target, bool]]:
        """What was judged."""
        judged: tuple[tuple[Target, bool | None], ...] = (("ttft", self.ttft), ("tpot", self.tpot))
        return [(name, met) for name, met in judged if met is not None]


def judge(slo: Slo, course: Course) -> Verdict | None:
    """None: nothing to judge.

    A refused request was never promised anything; it is counted as refused and is no part of goodput. A
    client that left early tells nothing, unless it left after a target was missed already. A failed request
    missed them all. An answer of one token has no gap and so meets any TPOT target.
    """
    if not slo.targets or course.outcome == "refused":
        return None
    if course.outcome == "failed":
        return Verdict(False if slo.ttft else None, False if slo.tpot else None, False)
    late = course.age if course.ttft is None else course.ttft
    ttft = late <= slo.ttft if slo.ttft else None
    tpot = course.tpot <= slo.tpot if slo.tpot and course.tpot is not None else None
    good = ttft is not False and tpot is not False
    if course.outcome == "cancelled" and good:
        return None
    return Verdict(ttft, tpot, good)


class Attainment:
    """Counts per model, since the start and over the last 1,000 judged requests."""

    def __init__(self, targets: Mapping[str, Slo]):
        self.targets = dict(targets)
        self.totals: defaultdict[str, Counter[tuple[Target, bool]]] = defaultdict(Counter)
        self.good: Counter[str] = Counter()
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=_ROLLING))

    def ended(self, model: str, course: Course) -> Verdict | None:
        """Book a request that has ended; the verdict, if there is one."""
        verdict = judge(self.targets.get(model, Slo()), course)
        if verdict is not None:
            self.totals[model].update(verdict.items())
            self.good[model] += verdict.good
            self._recent[model].append(verdict.good)
        return verdict

    def rolling(self, model: str) -> float | None:
        """The part (0 to 1) of the last 1,000 judged requests that were good; None before the first."""
        recent = self._recent[model]
        return sum(recent) / len(recent) if recent else None
