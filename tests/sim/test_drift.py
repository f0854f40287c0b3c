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


@pytest.mark.slow
def test_replanning_keeps_up_with_an_oracle(drift: Any) -> None:
    """Two phases of 100 s, far shorter than the benchmark's: the pair of the second shares a device, and is
    more than its memory serves on time."""
    day = drift.Day(phase=100.0, hot=6.5, memory=77_500_000_000, popular=((0, 1), (1, 7)))
    costs = Roofline("A100-80G")
    workload = drift.traffic(day, 1)
    found = {name: drift.simulated(name, day, workload, costs) for name in ("fixed", "replan", "oracle")}
    kept = {name: result.slo[drift.SCALES.index(5.0)] for name, result in found.items()}
    assert kept["replan"] > kept["oracle"] - 0.07  # the looks before it knows are a tenth of the phase
    assert kept["replan"] > kept["fixed"] + 0.005, "the change is one that costs a fixed plan something"
    assert found["fixed"].moves == []
    assert len(moves(found["oracle"])) == 2
    for name in ("replan", "oracle"):
        first = [move for move in moves(found[name]) if move.asked >= day.phase][:2]
        loud, quiet = sorted(first, key=lambda move: move.parked)
        assert (loud.parked, quiet.parked) == (False, True), (
            "one of the pair changes places with a quiet model"
        )
        assert loud.asked - day.phase <= 2 * day.watch.period
