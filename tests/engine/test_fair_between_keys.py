"""Requests of one model in weighted fair order between keys: the bound, floods, full queues."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.examples import examples

from muxd.engine.settings import Settings
from muxd.messages import Prefill

RUNNING, LONGEST, MOST = 3, 24, 12  # sequences at once, tokens of a prompt and of an answer
KEYS = ["a", "b", ""]
weights = st.sampled_from([0.5, 1.0, 1.0, 3.0])
arrive = st.tuples(st.just("arrive"), st.sampled_from(KEYS), st.integers(1, LONGEST), st.integers(1, MOST))
finish = st.tuples(st.just("finish"), st.integers(0, 15))
lose = st.tuples(st.just("lose"))
scripts = st.lists(st.one_of(arrive, arrive, finish, finish, lose), max_size=80)

FLOOD = [("arrive", "a", 24, 12)] * 20 + [("arrive", "b", 1, 1)] * 20 + [("finish", 0)] * 60


class Watched(BenchUnit):
    """After every event: how far two keys drift apart while both have somebody who waits."""

    def __init__(
        self,
        weights: dict[str, float],
        *,
        total_blocks: int = 200,
        max_queue: int = 1000,
        running: int = RUNNING,
    ):
        spec = Spec("m", max_running=running, max_queue=max_queue)
        self.weights, self.running = weights, running
        self.apart: dict[tuple[str, str], tuple[float, float]] = {}  # least and most since both wait
        super().__init__([spec], total_blocks, settings=Settings(prefill_tokens=16, look_ahead=4))

    def check(self) -> None:
        super().check()
        lane = self.scheduler.lanes["m"]
        assert lane.flights or not lane.waiting or not lane.ready, "nobody computes, somebody waits"
        for key in KEYS:
            mine = [s for s in self.all if s.request.key == key]
            counter = next((s.counter for s in mine if s.counter is not None), None)
            assert counter is None or counter.places == sum(bool(s.rows) for s in mine)
        had = {key: self.served(key) / self.weights[key] for key in KEYS}
        waits = {s.request.key for s in lane.waiting if s.counter is None}
        for one in KEYS:
            for other in KEYS:
                both = one < other and {one, other} <= waits
                if not both:
                    self.apart.pop((one, other), None)
                    continue
                apart = had[one] - had[other]
                least, most = self.apart.get((one, other), (apart, apart))
                least, most = self.apart[one, other] = min(least, apart), max(most, apart)
                assert most - least <= self.bound(one) + self.bound(other) + 1e-9

    def served(self, key: str) -> int:
        """Tokens of prompts that were admitted, and of answers."""
        mine = [s for s in self.all if s.request.key == key and s.counter is not None]
        return sum(s.prompt_tokens - s.cached + s.generated for s in mine)

    def bound(self, key: str) -> float:
        """``muxd/engine/design.md``: a prompt, and what those that are admitted can still say."""
        return (LONGEST + self.running * MOST) / self.weights[key]

    def ask(self, key: str, prompt: int = 4, answer: int = 4) -> Any:
        return self.arrive("m", prompt, answer, key=key, weight=self.weights[key])


@settings(max_examples=examples(60))
@given(
    scripts, st.tuples(weights, weights, weights), st.sampled_from([40, 200]), st.sampled_from([RUNNING, 8])
)
@example(FLOOD, (1, 1, 1), 200, RUNNING)
@example(FLOOD, (1, 1, 1), 200, 8)
def test_two_keys_that_wait_are_served_alike(
    script: list[tuple[Any, ...]], of: tuple[float, float, float], blocks: int, running: int
) -> None:
    unit = Watched(dict(zip(KEYS, of, strict=True)), total_blocks=blocks, running=running)
    for kind, *args in script:
        if kind == "arrive":
            unit.ask(*args)
        elif kind == "finish" and unit.busy():
            unit.finish("m", stops=args[0])
        elif kind == "lose":
            unit.lose("m", blameless=True)
            unit.revive("m")
    unit.run()
    assert set(unit.outcome) == {sequence.id for sequence in unit.all}


def test_weights_are_the_ratio_of_what_is_served() -> None:
    unit = Watched({"a": 3.0, "b": 1.0, "": 1.0})
    for _ in range(120):
        unit.ask("a")
        unit.ask("b")
    while unit.scheduler.lanes["m"].waiting.head and unit.served("a") < 600:
        unit.finish("m")
    assert abs(unit.served("a") / 3 - unit.served("b")) <= unit.bound("a") + unit.bound("b")
    assert unit.served("b") > 100


def test_who_comes_after_a_flood_goes_next() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0))
    flood = [unit.ask("a") for _ in range(50)]
    while sum(one.started is not None for one in flood) < 10:
        unit.finish("m")
    late = unit.ask("b")
    before = {one.id for one in flood if one.started is not None}
    while late.started is None:
        unit.finish("m")
    since = [one for one in flood if one.started is not None and one.id not in before]
    assert all(one.started == late.started for one in since), "at most beside it"
    lane = unit.scheduler.lanes["m"]
    assert len(list(lane.waiting.in_order())) == len(lane.waiting)


def test_who_has_many_places_leaves_the_last_to_others() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0), running=16)
    unit.ask("b", 1, 1)
    unit.run()
    flood = [unit.ask("a", answer=MOST) for _ in range(30)]
    lane = unit.scheduler.lanes["m"]
    while lane.admitted < 14 or any(flight.prefill for flight in lane.flights):
        unit.finish("m")
    unit.finish("m")
    assert (lane.admitted, lane.flights[0].prefill) == (14, False)
    late = [unit.ask("b"), unit.ask("b")]
    unit.finish("m")
    assert [one.started for one in late] == [unit.now] * 2, "there is a place for both"
    unit.run()
    assert set(unit.outcome.values()) == {"served"}
    assert len(unit.outcome) == 1 + len(flood) + len(late)


def test_who_has_few_places_is_read_without_prompts_of_who_has_many() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0), running=16)
    unit.ask("b", 1, 1)
    unit.run()
    for _ in range(30):
        unit.ask("a", answer=MOST)
    while unit.scheduler.lanes["m"].admitted < 8:
        unit.finish("m")
    late = unit.ask("b")
    unit.finish("m")
    commands = [command for _, _, command in unit.launches[-2:]]
    assert all(isinstance(command, Prefill) for command in commands)
    assert [len(command.chunks) for command in commands if isinstance(command, Prefill)] == [4, 1]
    assert late.started == unit.now
    unit.run()
    assert set(unit.outcome.values()) == {"served"}


def test_who_is_alone_takes_all_places() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0), running=16)
    for _ in range(50):
        unit.ask("a", answer=MOST)
    while unit.scheduler.lanes["m"].admitted < 16:
        unit.finish("m")


def test_who_has_been_alone_for_long_takes_all_places_again() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0), running=16)
    unit.ask("b", 1, 1)
    unit.run()
    flood = [unit.ask("a", answer=MOST) for _ in range(8 * 16 + 50)]
    lane, most = unit.scheduler.lanes["m"], [0, 0]
    while lane.waiting:
        later = sum(one.started is not None for one in flood) > 8 * 16
        most[later] = max(most[later], lane.admitted)
        unit.finish("m")
    assert most == [14, 16]


def test_nobody_saves_up_while_others_are_served() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0))
    unit.ask("b")
    unit.run()
    for _ in range(30):
        unit.ask("a")
    while unit.served("a") < 100:
        unit.finish("m")
    for _ in range(30):
        unit.ask("b")
    a, b = unit.served("a"), unit.served("b")
    while unit.served("b") - b < 60:
        unit.finish("m")
    assert unit.served("a") - a >= 60 - unit.bound("a") - unit.bound("b")
    assert unit.served("a") - a >= 20


def test_a_full_queue_turns_away_whose_is_longest() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0), max_queue=8)
    flood = [unit.ask("a") for _ in range(20)]
    refused = [one.id for one in flood if unit.outcome.get(one.id) == "refused"]
    late = unit.ask("b")
    assert late.id not in unit.outcome
    waiting = [one for one in flood if one.id not in unit.outcome]
    assert unit.outcome[max(set(range(20)) - {one.id for one in waiting} - set(refused))] == "refused"
    more = unit.ask("a")
    assert unit.outcome[more.id] == "refused"
    unit.run()
    assert unit.outcome[late.id] == "served"


def test_without_keys_it_is_by_arrival() -> None:
    unit = Watched(dict.fromkeys(KEYS, 1.0))
    asked = [unit.ask("", prompt) for prompt in (9, 1, 24, 3, 7)]
    order = list(unit.scheduler.lanes["m"].waiting.in_order())
    assert order == sorted(order, key=lambda one: one.id)
    assert len(order) >= len(asked) - RUNNING
