"""Quotas over a small world of requests that hold blocks for a while: do they follow the load, and what for?

The world admits the way the scheduler is meant to: whoever stays within its goal comes first and may take
back what others hold beyond their quotas, youngest first; then, unless a quota is growing, others borrow.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from muxd.engine.quota import Demand, Quotas

TICK = 0.25
PERIOD = 4.0


@dataclass
class Request:
    arrived: float
    left: float  # seconds it still has to run


@dataclass
class Side:
    """One model: ``rate`` requests a second, by time, of ``size`` blocks for ``keep`` seconds each."""

    rate: Callable[[float], float]
    size: int = 5
    keep: float = 8.0
    due: float = 0.0
    preempted: int = 0
    served: int = 0
    waits: list[float] = field(default_factory=list)
    queue: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)

    @property
    def held(self) -> int:
        return len(self.running) * self.size

    def demand(self, now: float) -> Demand:
        oldest = now - self.queue[0].arrived if self.queue else 0.0
        return Demand(self.held, len(self.queue) * self.size, oldest, self.size if self.queue else 0)


class World:
    def __init__(self, total: int, sides: dict[str, Side], weights: dict[str, float], adaptive: bool = True):
        self.total, self.sides, self.now, self.adaptive = total, sides, 0.0, adaptive
        self.quotas = Quotas(total, PERIOD)
        for name in sides:
            self.quotas.add(name, 0, total, weights.get(name, 1.0), 1)
        self.history: list[dict[str, int]] = []
        self.moved = 0

    @property
    def free(self) -> int:
        return self.total - sum(side.held for side in self.sides.values())

    def run(self, until: float) -> None:
        while self.now < until:
            self.now += TICK
            for name, side in self.sides.items():
                self._arrive(name, side)
                for request in side.running:
                    request.left -= TICK
                side.served += sum(request.left <= 0 for request in side.running)
                side.running = [request for request in side.running if request.left > 0]
            while self._admit_one():
                pass
            if self.adaptive and self.quotas.due(self.now):
                demands = {name: side.demand(self.now) for name, side in self.sides.items()}
                moves = self.quotas.adapt(demands, self.now)
                self.moved += sum(max(0, move.after - move.before) for move in moves)
                self.history.append(self.quotas.quotas())

    def _arrive(self, name: str, side: Side) -> None:
        side.due += side.rate(self.now) * TICK
        while side.due >= 1:
            side.due -= 1
            side.queue.append(Request(self.now, side.keep))
            self.quotas.arrived(name, side.size, self.now)

    def _admit_one(self) -> bool:
        waiting = sorted((side.queue[0].arrived, name) for name, side in self.sides.items() if side.queue)
        held_back = False
        for _, name in waiting:
            side = self.sides[name]
            if side.held + side.size <= self.quotas.goal(name):
                while self.free < side.size and self._reclaim(name):
                    pass
                if self._admit(name):
                    return True
                held_back = True
            held_back |= self.quotas.growing(name, side.held)
        return not held_back and any(self._admit(name) for _, name in waiting)

    def _admit(self, name: str) -> bool:
        side = self.sides[name]
        if self.free < side.size:
            return False
        request = side.queue.popleft()
        side.waits.append(self.now - request.arrived)
        side.running.append(request)
        return True

    def _reclaim(self, for_whom: str) -> bool:
        over = {n: self.quotas.over(n, s.held) for n, s in self.sides.items() if n != for_whom}
        worst = max(over, key=lambda name: over[name])
        if over[worst] <= 0:
            return False
        side = self.sides[worst]
        victim = max(side.running, key=lambda request: request.arrived)
        side.running.remove(victim)
        victim.left = side.keep  # recomputed
        side.queue.appendleft(victim)
        side.preempted += 1
        return True


def test_quotas_follow_when_the_load_changes_sides() -> None:
    """Each model in its turn asks for more than the pool; the other for a tenth of it."""
    a = Side(lambda now: 4.0 if now < 160 else 0.25)
    b = Side(lambda now: 0.25 if now < 160 else 4.0)
    world = World(100, {"a": a, "b": b}, {})
    world.run(160)
    assert world.quotas.quota("a") >= 80
    a.queue.clear()  # its clients gave up
    before = len(world.history)
    world.run(320)
    after = [quotas["b"] for quotas in world.history[before:]]
    assert after[5] >= 50, "after so many periods it has what its weight gives it at least"
    assert after[15] >= 80, "and later what the other has ceased to use, peaks included"
    assert after == sorted(after), "straight there"
    assert a.preempted + b.preempted <= 3, "others' blocks come back as their sequences end"


@pytest.mark.parametrize("weight", [1.0, 2.0, 4.0])
def test_two_overloaded_models_come_to_hold_what_their_weights_say_and_nobody_is_preempted(
    weight: float,
) -> None:
    """The first had the pool to itself and holds all of it as its quota when the second comes."""
    a, b = Side(lambda now: 8.0), Side(lambda now: 8.0 if now > 80 else 0.0)
    world = World(200, {"a": a, "b": b}, {"b": weight})
    world.run(80)
    assert world.quotas.quota("a") >= 180
    before = a.preempted
    world.run(160)
    fair = 200 * weight / (1 + weight)
    assert abs(world.quotas.quota("b") - fair) <= 11, "a grain, and rounding"
    assert abs(b.held - fair) <= 11 + b.size
    assert a.preempted - before <= 1, "one request lay across the edge of its quota"
    assert b.preempted == 0


def test_adaptation_spares_the_busy_model_the_preemptions_of_a_bursty_quiet_one() -> None:
    """Half the pool is the quiet model's by weight; it needs a quarter of it, now and then."""

    def run(adaptive: bool) -> tuple[Side, Side]:
        quiet = Side(lambda now: 2.5 if now % 24 < 4 else 0.0, keep=4.0)
        busy = Side(lambda now: 8.0)
        World(200, {"busy": busy, "quiet": quiet}, {}, adaptive).run(960)
        return busy, quiet

    busy, quiet = run(adaptive=True)
    busy_fixed, _ = run(adaptive=False)
    assert busy.preempted <= busy_fixed.preempted / 3
    assert busy.served > busy_fixed.served
    assert quiet.preempted == 0
    assert max(quiet.waits[len(quiet.waits) // 2 :]) <= quiet.keep / 2, "its peaks are remembered"


@pytest.mark.parametrize("periods", [1, 2])
def test_load_that_alternates_faster_than_quotas_calm_down_moves_little(periods: int) -> None:
    """After the first cycles both have what their weight gives, and there it stays."""
    cycle = 2 * periods * PERIOD
    a = Side(lambda now: 5.0 if now % cycle < cycle / 2 else 0.0, keep=2.0)
    b = Side(lambda now: 0.0 if now % cycle < cycle / 2 else 5.0, keep=2.0)
    world = World(40, {"a": a, "b": b}, {})
    world.run(100 * cycle)
    assert 0 < world.moved <= 40
    assert all(quotas == {"a": 20, "b": 20} for quotas in world.history[10:])


def test_a_request_longer_than_its_models_part_is_served_all_the_same() -> None:
    """Its head is most of the pool, and the other model would always use more than all of it."""
    long = Side(lambda now: 0.05, size=70)
    busy = Side(lambda now: 8.0)
    world = World(100, {"busy": busy, "long": long}, {"busy": 4.0})
    world.run(960)
    assert long.served >= 40, "of 48 that came"
    assert long.preempted == 0
    assert max(long.waits) <= 8 * PERIOD
