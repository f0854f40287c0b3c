"""Quotas under random histories: what must hold after every call, and where it ends when the load stays."""

import sys
from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.examples import examples

from muxd.engine.fair_share import pour
from muxd.engine.quota import Demand, Move, Quotas
from muxd.errors import ConfigError

NAMES = ["a", "b", "c", "d", "e"]
WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 7.0])
CALM = 2


def fair(total: int, models: dict[str, tuple[int, int, float]]) -> dict[str, float]:
    """The division by weight of what is not guaranteed, by bisection. Models are (min, max, weight)."""

    def parts(level: float) -> dict[str, float]:
        return {name: min(high, low + weight * level) for name, (low, high, weight) in models.items()}

    low, high = 0.0, 10.0 * total / min((weight for _, _, weight in models.values()), default=1.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle).values()) <= total else (low, middle)
    return parts(low)


class QuotaHistory(RuleBasedStateMachine):
    @initialize(total=st.integers(1, 400))
    def start(self, total: int) -> None:
        self.total = total
        self.quotas = Quotas(total, 1.0, calm=CALM)
        self.models: dict[str, tuple[int, int, float]] = {}
        self.widths: dict[str, int] = {}
        self.turned: dict[str, tuple[int, int]] = {}  # model -> the round of its last move, +1 or -1
        self.promised: dict[str, int] = {}
        self.round = 0
        self.now = 0.0

    # ---- settings ---------------------------------------------------------------------------------

    def holds(self, name: str, low: int, high: int) -> bool:
        others = sum(m[0] for other, m in self.models.items() if other != name)
        return low <= high <= self.total and others + low <= self.total

    @rule(
        name=st.sampled_from(NAMES),
        low=st.integers(0, 120),
        high=st.one_of(st.none(), st.integers(0, 400)),
        weight=WEIGHTS,
        width=st.sampled_from([1, 1, 2, 9]),
    )
    def configure(self, name: str, low: int, high: int | None, weight: float, width: int) -> None:
        high = self.total if high is None else high
        before = self.quotas.quotas()
        try:
            if name in self.models:
                self.quotas.set(name, low, high, weight)
            else:
                self.quotas.add(name, low, high, weight, width)
                self.widths[name] = width
        except ConfigError:
            assert not self.holds(name, low, high)
            assert self.quotas.quotas() == before
        else:
            assert self.holds(name, low, high)
            self.models[name] = (low, high, weight)
            self.promised = {}
        if not self.round:
            for model, part in fair(self.total, self.models).items():
                assert abs(self.quotas.quota(model) - part) < 1.001

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        self.quotas.remove(name)
        del self.models[name], self.widths[name]
        self.turned.pop(name, None)
        self.promised = {}

    # ---- time -------------------------------------------------------------------------------------

    @precondition(lambda self: self.models)
    @rule(data=st.data(), blocks=st.integers(0, 100), wait=st.floats(0, 3))
    def arrive(self, data: st.DataObject, blocks: int, wait: float) -> None:
        self.now += wait
        self.quotas.arrived(data.draw(st.sampled_from(sorted(self.models))), blocks, self.now)

    @rule(data=st.data(), wait=st.floats(0, 20), periods=st.integers(1, 4))
    def adapt(self, data: st.DataObject, wait: float, periods: int) -> None:
        demands = {name: data.draw(self.demand(name)) for name in self.models if data.draw(st.integers(0, 9))}
        for _ in range(periods):
            self.now += wait
            self.check_adapt(demands)

    def demand(self, name: str) -> st.SearchStrategy[Demand]:
        edge = [0, self.quotas.quota(name), self.quotas.goal(name), self.models[name][1]]
        return st.builds(
            Demand,
            held=st.one_of(st.sampled_from(edge), st.integers(0, 400)),
            waiting_blocks=st.one_of(st.just(0), st.integers(0, 1000)),
            oldest=st.one_of(st.just(0.0), st.floats(0, 30)),
            ready=st.sampled_from([True, True, True, True, False]),
        )

    def check_adapt(self, demands: dict[str, Demand]) -> None:
        before = self.quotas.quotas()
        moves = self.quotas.adapt(demands, self.now)
        self.round += 1
        assert {m.model: (m.before, m.after) for m in moves} == {
            name: (before[name], after)
            for name, after in self.quotas.quotas().items()
            if after != before[name]
        }
        gained = sum(m.after - m.before for m in moves if m.after > m.before)
        assert gained == sum(m.before - m.after for m in moves if m.after < m.before)
        grain = max(1, int(0.1 * self.total / max(1, len(before))))
        assert gained <= max(grain, self.total // 4)
        waits_for_a_row = any(before[name] < self.widths[name] for name in before)
        if not waits_for_a_row and all(self.promised.get(name, n) == n for name, n in before.items()):
            assert all((move.after - move.before) % grain == 0 for move in moves), "the dead band"
        for move in moves:
            self.check_move(move, demands)
        self.promised = {name: self.quotas.goal(name) for name in self.models}

    def check_move(self, move: Move, demands: dict[str, Demand]) -> None:
        name, way = move.model, 1 if move.after > move.before else -1
        assert demands[name].ready, "who is not seen stands still"
        last, last_way = self.turned.get(name, (-100, way))
        assert way == last_way or self.round > last + CALM
        self.turned[name] = (self.round, way)
        promised = self.promised.get(name, move.before)
        if way > 0:
            assert demands[name].waiting_blocks > 0 or move.after <= promised
            return
        assert move.after >= min(demands[name].held, move.before)
        if demands[name].starved:
            slack = 1 + sum(self.widths.values())  # rounding, and a row for each that has none
            assert move.after >= fair(self.total, self.models)[name] - slack

    @invariant()
    def always(self) -> None:
        if not hasattr(self, "quotas"):
            return
        quotas = self.quotas.quotas()
        assert quotas.keys() == self.models.keys()
        assert sum(quotas.values()) == min(self.total, sum(high for _, high, _ in self.models.values()))
        assert sum(self.quotas.goal(name) for name in quotas) == sum(quotas.values())
        for name, (low, high, _) in self.models.items():
            assert low <= quotas[name] <= high
            assert low <= self.quotas.goal(name) <= high
            assert self.quotas.over(name, quotas[name] + 3) == 3


TestQuotaHistory = QuotaHistory.TestCase
TestQuotaHistory.settings = settings(max_examples=examples(200), stateful_step_count=25)


# ---- a load that stays --------------------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn, min_models: int = 2) -> tuple[Quotas, dict[str, tuple[int, int, float]]]:
    """A pool that is larger than the rounding, guarantees of at most a half of it."""
    count = draw(st.integers(min_models, 8))
    total = draw(st.integers(100 * count, 100_000))
    models, quotas = {}, Quotas(total, 1.0)
    for number in range(count):
        low = draw(st.integers(0, total // (2 * count)))
        high = draw(st.sampled_from([total, total, total // 2]))
        models[str(number)] = (low, high, draw(WEIGHTS))
        quotas.add(str(number), *models[str(number)], draw(st.integers(1, 3)))
    return quotas, models


@given(pools(), st.data())
@settings(max_examples=examples(100))
def test_when_all_are_hungry_quotas_become_what_the_weights_say(
    pool: tuple[Quotas, dict[str, tuple[int, int, float]]], data: st.DataObject
) -> None:
    """From wherever some of them alone had brought them; everybody always uses all that it may."""
    quotas, models = pool
    first = data.draw(st.sets(st.sampled_from(sorted(models)), min_size=1))

    def period(hungry: set[str]) -> None:
        demands = {
            name: Demand(quotas.goal(name), 10 * quotas.total_blocks, 5.0)
            if name in hungry
            else Demand(0, 0, 0.0)
            for name in models
        }
        quotas.adapt(demands, quotas.next_due())

    for _ in range(data.draw(st.integers(0, 10))):
        period(first)
    for _ in range(25):
        period(set(models))
    off = {name: quotas.quota(name) - part for name, part in fair(quotas.total_blocks, models).items()}
    grain = max(1, int(0.1 * quotas.total_blocks / len(models)))
    above, below = max(off.values()), -min(off.values())
    assert min(above, below) < grain + 2, f"nobody is left to give or to take a grain: {off}, {grain}"
    assert max(above, below) < 0.1 * quotas.total_blocks


@given(pools(), st.data())
@settings(max_examples=examples(100))
def test_a_flash_crowd_has_nine_tenths_of_what_nobody_uses_in_six_periods(
    pool: tuple[Quotas, dict[str, tuple[int, int, float]]], data: st.DataObject
) -> None:
    quotas, models = pool
    crowd = data.draw(st.sampled_from(sorted(models)))
    uses = {name: data.draw(st.integers(0, quotas.quota(name))) for name in models if name != crowd}
    steady = {name: Demand(held, 0, 0.0) for name, held in uses.items()}
    for _ in range(10):
        quotas.adapt({**steady, crowd: Demand(0, 0, 0.0)}, quotas.next_due())
    for _ in range(6):
        crowding = Demand(quotas.quota(crowd), 10 * quotas.total_blocks, 1.0)
        quotas.adapt({**steady, crowd: crowding}, quotas.next_due())
    others = sum(max(models[name][0], held) for name, held in uses.items())
    unused = min(models[crowd][1], quotas.total_blocks - others)
    assert quotas.quota(crowd) >= unused - 0.1 * quotas.total_blocks


@given(st.integers(1, CALM), st.integers(2, 6), st.integers(100, 10_000))
@settings(max_examples=examples(60))
def test_hunger_that_alternates_faster_than_the_calm_ends_in_rest(half: int, count: int, total: int) -> None:
    """Models are hungry in turns, for ``half`` periods each round, and idle else."""
    quotas = Quotas(total, 1.0, calm=CALM)
    for number in range(count):
        quotas.add(str(number), 0, total, 1.0, 1)
    moved = []
    for period in range(200):
        odd = period // half % 2
        demands = {
            name: Demand(quotas.goal(name), total, 2.0) if int(name) % 2 == odd else Demand(0, 0, 0.0)
            for name in quotas.quotas()
        }
        moves = quotas.adapt(demands, quotas.next_due())
        moved.append(sum(max(0, move.after - move.before) for move in moves))
    assert sum(moved) <= 2 * total
    assert sum(moved[100:]) == 0, moved


# ---- division -----------------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(0, 3000), st.fractions(0, 100)), max_size=12),
)
def test_pour_is_exact_and_proportional(amount: int, glasses: list[tuple[int, Fraction]]) -> None:
    rooms, weights = [room for room, _ in glasses], [weight for _, weight in glasses]
    got = pour(amount, rooms, weights)
    assert sum(got) == min(amount, sum(room for room, weight in glasses if weight))
    assert all(0 <= n <= room for n, room in zip(got, rooms, strict=True))
    levels = [(n, w) for n, room, w in zip(got, rooms, weights, strict=True) if n < room and w]
    for n, w in levels:
        for i, other in enumerate(got):
            if weights[i]:  # nobody is ahead of who could still take
                assert (other - 1) * w <= (n + 1) * weights[i]
    assert pour(-amount, rooms, weights) == [0] * len(rooms)


def test_cost_of_an_adaptation_grows_with_the_models() -> None:
    """Lines executed, not seconds: ten times the models, at most about ten times the lines."""

    def lines(count: int) -> int:
        quotas = Quotas(1000 * count, 1.0)
        for number in range(count):
            quotas.add(str(number), 10, 1000 * count, 1.0, 1)
        demands = {str(n): Demand(900, 5000 * (n % 2), 3.0 * (n % 2)) for n in range(count)}
        executed = 0

        def trace(frame: object, event: str, arg: object) -> object:
            nonlocal executed
            executed += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            quotas.adapt(demands, 1.0)
        finally:
            sys.settrace(before)
        return executed

    assert lines(100) <= 13 * lines(10)
