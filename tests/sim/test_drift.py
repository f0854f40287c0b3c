"""Replanning on a condensed day, against an oracle that is told the rates: the benchmark's own functions."""

from pathlib import Path
from typing import Any

import pytest

from muxd.cost.analytic import Roofline
from muxd.sim.moving import Move

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import drift

    return drift


def moves(found: Any) -> list[Move]:
    return list(found.moves)


def test_replanning_keeps_up_with_an_oracle(drift: Any) -> None:
    """Two phases of 100 s, far shorter than the benchmark's: the pair of the second shares a device."""
    day = drift.Day(phase=100.0, popular=((0, 1), (2, 5)))
    costs = Roofline("A100-80G")
    workload = drift.traffic(day, 1)
    found = {name: drift.simulated(name, day, workload, costs) for name in ("fixed", "replan", "oracle")}
    at_8 = {name: result.slo[drift.SCALES.index(8.0)] for name, result in found.items()}
    assert at_8["replan"] > at_8["oracle"] - 0.05
    assert at_8["replan"] > at_8["fixed"] + 0.1, "the change is one that a fixed plan does not survive"
    assert found["fixed"].moves == []
    for name in ("replan", "oracle"):
        assert len(moves(found[name])) == 2, "one of the pair changes places with a quiet model"
        loud, quiet = sorted(moves(found[name]), key=lambda move: move.parked)
        assert (loud.parked, quiet.parked) == (False, True)
        assert loud.asked - day.phase <= 2 * day.watch.period
