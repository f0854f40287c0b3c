"""Where batches run on a GPU in parts: apart while that is possible, never on fewer SMs than booked."""

from hypothesis import given
from hypothesis import strategies as st

from muxd.fleet.parts import Parts
from muxd.messages import Decode, NewRows, Prefill

STEPS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0, 25, 50, 75, 100])), max_size=40)


def decode(share: int, batch: int = 1) -> Decode:
    return Decode(batch, share, NewRows(), [1], [], [])


def prefill(share: int, batch: int) -> Prefill:
    return Prefill(batch, share, NewRows(), [], [])


@given(STEPS)
def test_booked_shares_get_parts_of_their_own(steps: list[tuple[str, int]]) -> None:
    """0 frees a model. While no more than 100 % is booked, no two batches share a part."""
    book = Parts(4)
    held: dict[str, int] = {}  # a mask of parts
    shares: dict[str, int] = {}
    for model, share in steps:
        book.free(model)
        held.pop(model, None)
        shares.pop(model, None)
        if share and sum(shares.values()) + share <= 100:
            mask = book.placed(model, decode(share)).parts or 0b1111
            assert mask.bit_count() == share // 25
            assert not any(mask & other for other in held.values())
            held[model], shares[model] = mask, share
    assert book.taken == sum(held.values())


def test_overbooked_they_lie_where_the_fewest_are() -> None:
    book = Parts(4)
    assert book.placed("a", decode(75)).parts == 0b0111
    assert book.placed("b", decode(50)).parts == 0b1100
    assert book.placed("c", decode(100)).parts == 0  # the whole device needs no green context
    book.free("a")
    assert book.placed("d", decode(25)).parts == 0b0001


def test_a_step_runs_where_the_one_in_front_of_it_runs() -> None:
    book = Parts(4)
    first = book.placed("a", decode(50, 1)).parts
    assert book.placed("b", decode(50, 2)).parts == 0b1111 - first
    assert book.placed("b", decode(50, 3)).parts == 0b1111 - first
    assert book.placed("a", decode(50, 4)).parts == first
    book.done("a", 1)
    assert book.taken == 0b1111
    book.done("a", 4)
    assert book.taken == 0b1111 - first
    assert book.placed("c", prefill(50, 5)).parts == first


def test_a_prefill_beside_a_step_of_its_model_has_parts_of_its_own() -> None:
    book = Parts(4)
    step = book.placed("a", decode(50, 1)).parts
    assert book.placed("a", prefill(50, 2)).parts == 0b1111 - step
    assert book.placed("a", decode(50, 3)).parts == step
    book.done("a", 1)
    book.done("a", 2)
    assert book.taken == step


def test_a_model_goes_back_to_where_it_was() -> None:
    """Its worker has graphs there. Without need nobody is sent to a place that is new to it."""
    book = Parts(4)
    assert book.placed("a", decode(25, 1)).parts == 0b0001
    assert book.placed("b", decode(50, 2)).parts == 0b0110
    book.done("a", 1)
    assert book.placed("c", decode(25, 3)).parts == 0b0001
    assert book.placed("a", decode(25, 4)).parts == 0b1000
    book.done("a", 4)
    book.done("b", 2)
    book.done("c", 3)
    assert book.placed("b", decode(50, 5)).parts == 0b0110, "not 0011, the lowest"
    assert book.placed("a", decode(25, 6)).parts == 0b1000
    book.done("a", 6)
    assert book.placed("a", prefill(25, 7)).parts == 0b0001, "another worker, perhaps"
    book.free("a")
    assert book.placed("a", decode(25, 8)).parts == 0b0001, "a new worker knows no place"


def test_without_parts_commands_stay_as_they_are() -> None:
    command = decode(50)
    assert Parts(0).placed("a", command) is command
