"""Where batches run on a GPU in parts: apart while that is possible, never on fewer SMs than booked."""

from hypothesis import given
from hypothesis import strategies as st
from support.bench_unit import BenchUnit
from support.bench_worker import Spec

from muxd.config import Config, SchedulerConfig
from muxd.engine.assembly import place, scheduler
from muxd.engine.parts import Parts
from muxd.engine.settings import Settings
from muxd.pool.ledger import Ledger

STEPS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0, 25, 50, 75, 100])), max_size=40)


class Book:
    """Four parts, and who is on them."""

    def __init__(self) -> None:
        self.parts = Parts(4)
        self.held: dict[str, int] = {}

    def place(self, model: str, share: int, *, prefill: bool = False, behind: str = "") -> int:
        """A batch of the model, ``behind`` another; its name is the model's, a prefill's with a star."""
        front = self.held.get(behind, 0)
        mask = self.parts.choose(model, share, self.held.values(), prefill=prefill, front=front)
        name = model + "*" * prefill
        self.held[name + "+" * (name in self.held)] = mask
        return mask

    def done(self, name: str) -> None:
        del self.held[name]
        if name + "+" in self.held:
            self.held[name] = self.held.pop(name + "+")

    @property
    def taken(self) -> int:
        mask = 0
        for held in self.held.values():
            mask |= held
        return mask


@given(STEPS)
def test_booked_shares_get_parts_of_their_own(steps: list[tuple[str, int]]) -> None:
    """0 frees a model. While no more than 100 % is booked, no two batches share a part."""
    parts = Parts(4)
    held: dict[str, int] = {}  # a mask of parts
    shares: dict[str, int] = {}
    for model, share in steps:
        parts.forget(model)
        held.pop(model, None)
        shares.pop(model, None)
        if share and sum(shares.values()) + share <= 100:
            mask = parts.choose(model, share, held.values(), prefill=False)
            assert mask.bit_count() == share // 25
            assert not any(mask & other for other in held.values())
            held[model], shares[model] = mask, share


def test_overbooked_they_lie_where_the_fewest_are() -> None:
    book = Book()
    assert book.place("a", 75) == 0b0111
    assert book.place("b", 50) == 0b1100
    assert book.place("c", 100) == 0b1111
    assert book.parts.told(0b1111) == 0, "the whole device needs no green context"
    book.done("a")
    assert book.place("d", 25) == 0b0001


def test_a_step_runs_where_the_one_in_front_of_it_runs() -> None:
    book = Book()
    first = book.place("a", 50)
    assert book.place("b", 50) == 0b1111 - first
    assert book.place("b", 50, behind="b") == 0b1111 - first
    assert book.place("a", 50, behind="a") == first
    book.done("a")
    assert book.taken == 0b1111
    book.done("a")
    assert book.taken == 0b1111 - first
    assert book.place("c", 50, prefill=True) == first


def test_a_prefill_beside_a_step_of_its_model_has_parts_of_its_own() -> None:
    book = Book()
    step = book.place("a", 50)
    assert book.place("a", 50, prefill=True) == 0b1111 - step
    assert book.place("a", 50, behind="a") == step


def test_a_model_goes_back_to_where_it_was() -> None:
    """Its worker has graphs there. Without need nobody is sent to a place that is new to it."""
    book = Book()
    assert book.place("a", 25) == 0b0001
    assert book.place("b", 50) == 0b0110
    book.done("a")
    assert book.place("c", 25) == 0b0001
    assert book.place("a", 25) == 0b1000
    for name in ("a", "b", "c"):
        book.done(name)
    assert book.place("b", 50) == 0b0110, "not 0011, the lowest"
    assert book.place("a", 25) == 0b1000
    book.done("a")
    assert book.place("a", 25, prefill=True) == 0b0001, "another worker, perhaps"
    book.parts.forget("a")
    book.done("a*")
    assert book.place("a", 25) == 0b0001, "a new worker knows no place"


def test_without_parts_there_is_no_place() -> None:
    assert Parts(0).choose("a", 50, [], prefill=True) == 0


def test_what_a_unit_runs_lies_apart_and_commands_say_where() -> None:
    """A prefill, steps, and steps ahead of others, of a model in two processes and one in one."""
    specs = [Spec("a", share=50, split=True), Spec("b", share=25)]
    ahead = Settings(0.5, 16, look_ahead=4, run_ahead=True)
    unit = BenchUnit(specs, total_blocks=600, parts=4, rungs=(25, 50, 75, 100), settings=ahead)
    for model in ("a", "b", "a", "b"):
        unit.arrive(model, 8, 6)
    seen = 0
    while unit.busy():
        flights = [flight for lane in unit.scheduler.lanes.values() for flight in lane.flights]
        taken = 0
        for flight in flights:
            assert flight.mask.bit_count() * 25 == flight.share
            assert not flight.mask & taken
            taken |= flight.mask
            assert flight.command.parts == (flight.mask if flight.mask != 0b1111 else 0)
            seen += len(flights) > 1
        for lane in unit.scheduler.lanes.values():
            if lane.ahead is not None and lane.step is not None:
                assert lane.ahead.mask == lane.step.mask
        unit.finish(unit.busy()[0])
    assert seen


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=2, max_size=8))
def test_on_a_mesh_no_two_batches_ever_lie_on_each_other(asked: list[tuple[str, int]]) -> None:
    """Whatever ``overbook`` says: kernels of two models that wait for their other ranks would wait for ever.
    A share is booked once, for all members."""
    config = Config(scheduler=SchedulerConfig(overbook=100, prefill_tokens=16))
    rungs, held = (25, 50, 75, 100), Ledger(600)
    limits = {}
    for meshed in (False, True):
        where = place(config, rungs, held, 8192, gpu=True, caps=False, meshed=meshed)
        limits[meshed] = scheduler(config.scheduler, where, held, {}).shares.limit
    assert limits == {False: 200, True: 100}
    specs = [Spec(name, share=50) for name in "abc"]
    unit = BenchUnit(specs, total_blocks=600, parts=4, rungs=rungs, overbook=limits[True] - 100)
    for model, tokens in asked:
        unit.arrive(model, 4, tokens)
    while unit.busy():
        flights = [flight for lane in unit.scheduler.lanes.values() for flight in lane.flights]
        taken = 0
        for flight in flights:
            assert not flight.mask & taken
            taken |= flight.mask
        unit.finish(unit.busy()[-1])
