"""What counts as met, and that the counts agree with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from muxd.engine.actions import Arrived, Emit, Ended, Rejected, Tick
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Attainment, Course, Slo, Verdict, judge
from muxd.errors import QueueFull
from muxd.messages import Sampling

BOTH = Slo(ttft=1.0, tpot=0.1)


@pytest.mark.parametrize(
    ("slo", "course", "verdict"),
    [
        (BOTH, Course("served", 3.0, 1.0, 0.1), Verdict(True, True, True)),
        (BOTH, Course("served", 3.0, 1.01, 0.1), Verdict(False, True, False)),
        (BOTH, Course("served", 3.0, 0.5, 0.11), Verdict(True, False, False)),
        (BOTH, Course("served", 0.5, 0.5), Verdict(True, None, True)),  # one token has no gap
        (BOTH, Course("served", 0.5), Verdict(True, None, True)),  # ended with its first sample
        (Slo(ttft=1.0), Course("served", 9.0, 0.5, 5.0), Verdict(True, None, True)),
        (Slo(tpot=0.1), Course("served", 9.0, 8.0, 0.1), Verdict(None, True, True)),
        (BOTH, Course("failed", 0.1), Verdict(False, False, False)),
        (Slo(tpot=0.1), Course("failed", 0.1), Verdict(None, False, False)),
        (BOTH, Course("refused", 0.0), None),
        (BOTH, Course("cancelled", 0.9), None),  # it left in time: nothing was missed yet
        (BOTH, Course("cancelled", 1.5), Verdict(False, None, False)),  # it gave up after the target
        (BOTH, Course("cancelled", 5.0, 0.5, 0.05), None),
        (BOTH, Course("cancelled", 5.0, 0.5, 0.2), Verdict(True, False, False)),
        (Slo(), Course("served", 99.0, 98.0, 1.0), None),
    ],
)
def test_judgement(slo: Slo, course: Course, verdict: Verdict | None) -> None:
    assert judge(slo, course) == verdict


seconds = st.floats(0.0, 3.0)
courses = st.builds(
    Course,
    st.sampled_from(["served", "served", "failed", "cancelled", "refused"]),
    seconds,
    st.none() | seconds,
    st.none() | seconds,
)


@given(st.lists(courses, max_size=40), st.sampled_from([BOTH, Slo(ttft=1.0), Slo(tpot=1.0), Slo()]))
def test_goodput_never_exceeds_what_met_each_target(courses: list[Course], slo: Slo) -> None:
    book = Attainment({"m": slo})
    verdicts = [verdict for one in courses if (verdict := book.ended("m", one)) is not None]
    totals, good = book.totals["m"], book.good["m"]
    assert good == sum(verdict.good for verdict in verdicts)
    for target in slo.targets:
        missed = totals[target, False]
        assert totals[target, True] + missed <= len(verdicts)
        assert good <= len(verdicts) - missed
    assert book.rolling("m") == (good / len(verdicts) if verdicts else None)
    assert {target for target, _ in totals} <= set(slo.targets)
    assert book.rolling("other") is None


def test_the_rolling_rate_forgets_what_is_long_ago() -> None:
    book = Attainment({"m": Slo(ttft=1.0)})
    for late in [2.0] * 500 + [0.5] * 1000:
        book.ended("m", Course("served", late, late))
    assert book.rolling("m") == 1.0
    assert book.totals["m"] == {("ttft", True): 1000, ("ttft", False): 500}


def test_the_observer_measures_from_arrival_and_between_tokens() -> None:
    registry = CollectorRegistry()
    observer = Observer(Metrics(registry), {"m": BOTH, "free": Slo()})

    def request(id: int, first: float, gap: float, tokens: int, outcome: str = "served") -> None:
        sequence = Sequence(id, Request("r", "m", [1, 2], 9, Sampling(), frozenset()), 10.0)
        observer.observe(Arrived(sequence), [], 10.0)
        for index in range(tokens):
            sequence.tokens.append(5)
            sequence.latest = now = 10.0 + first + gap * index
            sequence.first = now if index == 0 else sequence.first
            observer.observe(Tick(), [Emit([sequence], [5], [0], [gap if index else None])], now)
        served = outcome == "served"
        end = Ended(sequence, "stop") if served else Rejected(sequence, QueueFull("full"))
        observer.observe(Tick(), [end], 20.0)

    request(1, first=0.5, gap=0.09, tokens=4)
    request(2, first=1.5, gap=0.09, tokens=4)
    request(3, first=0.5, gap=0.2, tokens=3)
    request(4, first=0.5, gap=0.2, tokens=1)
    request(5, first=0.0, gap=0.0, tokens=0, outcome="refused")

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"muxd_{name}_total", {"model": "m", **labels})

    assert count("slo_requests", target="ttft", met="true") == 3
    assert count("slo_requests", target="ttft", met="false") == 1
    assert count("slo_requests", target="tpot", met="true") == 2
    assert count("slo_requests", target="tpot", met="false") == 1
    assert count("goodput_requests") == 2
    assert observer.attainment.rolling("m") == 0.5
    assert registry.get_sample_value("muxd_goodput_requests_total", {"model": "free"}) is None
