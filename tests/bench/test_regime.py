"""Who wins in our users' mixes: the short form of the suite, its order asserted; and its search."""

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# A rate of each scene that mux serves on time, and near or beyond the end of all others.
RATES = {"A": 150.0, "B": 40.0, "C": 10.0, "D": 36.0, "E": 6.0}
SECONDS = 8.0


@pytest.fixture
def regime(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regime

    return regime


@pytest.mark.parametrize("key", list(RATES))
def test_mux_keeps_as_many_on_time_as_any_other_policy(regime: Any, key: str) -> None:
    scene = next(scene for scene in regime.SCENES if scene.key == key)
    on_time = {
        policy: regime.pooled([regime.run(scene, policy, RATES[key], SECONDS, 1)])
        for policy in ("mux", "spatial", "temporal", "servers", "swap")
    }
    relative, absolute = on_time["mux"]
    assert relative >= 0.985, on_time
    assert absolute >= 0.985, on_time
    for policy, (theirs, human) in on_time.items():
        assert relative >= theirs - 0.005, policy
        assert absolute >= human - 0.005, policy
    assert on_time["temporal"][0] < relative - 0.05, "who takes turns is late where sizes are mixed"
    assert on_time["swap"][0] < relative - 0.05, on_time


class Known:
    """A search whose points are known: each target is kept up to a rung."""

    def __init__(self, regime: Any, relative: int, absolute: int):
        self.search = regime.Search(regime.SCENES[0], "mux")
        self.asked: list[int] = []
        while (rung := self.search.next()) is not None:
            self.asked.append(rung)
            parts = [0.995 if rung <= last else 0.5 for last in (relative, absolute)]
            self.search.points[rung] = regime.Point(self.search.scene.rates[rung], *parts, [])


@pytest.mark.parametrize(("relative", "absolute"), [(-1, -1), (0, 3), (7, 7), (5, 20), (100, 100)])
def test_the_search_finds_the_last_rung_that_keeps_each_target(
    regime: Any, relative: int, absolute: int
) -> None:
    known = Known(regime, relative, absolute)
    rates = known.search.scene.rates
    for target, last in enumerate((relative, absolute)):
        expected = 0.0 if last < 0 else rates[min(last, len(rates) - 1)]
        assert known.search.found(target) == expected
    assert len(known.asked) == len(set(known.asked)) <= 12
