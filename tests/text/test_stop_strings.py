"""Stop strings: nothing of one is shown, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.errors import BadRequest
from muxd.text.stop import MAX_STOP_CHARS, StopStrings

_LETTERS = st.text(alphabet="ab\nü", max_size=30)
_STOPS = st.lists(st.text(alphabet="ab\nü", min_size=1, max_size=5), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """By str.find over the whole text: the occurrence that ends first, the longest of those."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(_STOPS, st.lists(_LETTERS, max_size=8))
def test_any_cut_gives_what_str_find_gives(stops: list[str], pushes: list[str]) -> None:
    watch = StopStrings(stops)
    shown, hit = "", False
    for text in pushes:
        emit, hit = watch.push(text)
        shown += emit
    shown += watch.flush()
    assert (shown, hit) == reference("".join(pushes), stops)


@given(_STOPS, st.lists(_LETTERS, max_size=8))
def test_what_is_held_back_is_the_shortest_possible(stops: list[str], pushes: list[str]) -> None:
    watch, text, shown = StopStrings(stops), "", ""
    for push in pushes:
        text += push
        emit, hit = watch.push(push)
        shown += emit
        if hit:
            return
        tails = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(shown) == len(text) - max(tails, default=0)


def test_after_a_hit_nothing_more_is_shown() -> None:
    watch = StopStrings(["END"])
    assert watch.push("one EN") == ("one ", False)
    assert watch.push("D two") == ("", True)
    assert watch.push("three") == ("", True)
    assert watch.flush() == ""


@pytest.mark.parametrize("stop", ["", "x" * (MAX_STOP_CHARS + 1)])
def test_a_stop_string_without_a_sensible_length_is_refused(stop: str) -> None:
    with pytest.raises(BadRequest, match="1 to 1024 characters") as caught:
        StopStrings(["ok", stop])
    assert caught.value.param == "stop"


def test_a_periodic_stop_string_costs_linear_time() -> None:
    """The worst case of naive matching: 100,000 characters that keep almost matching 1,024 of them."""
    watch = StopStrings(["a" * (MAX_STOP_CHARS - 1) + "b"])
    steps = 0
    step = watch._step

    def counting(character: str) -> int:
        nonlocal steps
        steps += 1
        return step(character)

    watch._step = counting  # type: ignore[method-assign]
    shown = "".join(watch.push("a")[0] for _ in range(100_000))
    assert steps == 100_000
    assert len(shown) == 100_000 - (MAX_STOP_CHARS - 1)
