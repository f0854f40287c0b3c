"""Prefixes, paces, health, retries, plans and lists: what an ingress and a register decide without Ray."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.ray.health import STALE, Health
from muxd.ray.merging import merged
from muxd.ray.paces import Paces
from muxd.ray.plans import assign
from muxd.ray.prefixes import Prefixes
from muxd.ray.reports import HostReport, Seen
from muxd.ray.retries import TRIES, has_left, may_retry, refused, says_nothing

EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
chains = st.lists(st.binary(min_size=1, max_size=2), max_size=6, unique=True)


@given(st.lists(chains, max_size=12), chains)
def test_a_beginning_is_known_as_far_as_something_sent_began_so(
    sent: list[list[bytes]], keys: list[bytes]
) -> None:
    prefixes = Prefixes()
    for one in sent:
        prefixes.sent("a", one)
    every = {key for one in sent for key in one}
    known = prefixes.known("a", keys)
    assert all(key in every for key in keys[:known])
    assert known == len(keys) or keys[known] not in every
    assert prefixes.known("b", keys) == 0


@given(st.lists(chains, max_size=20), st.integers(1, 8))
def test_no_more_keys_are_kept_than_may_be_and_of_a_chain_the_tail_goes_first(
    sent: list[list[bytes]], most: int
) -> None:
    prefixes = Prefixes(most)
    for one in sent:
        prefixes.sent("a", one)
        assert prefixes.known("a", one) == min(most, len(one))
    prefixes.forget("a")
    assert all(prefixes.known("a", one) == 0 for one in sent)


@given(
    st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 50)), min_size=1, max_size=20), st.integers(0, 50)
)
def test_a_wait_lies_within_what_was_measured_and_grows_with_the_load(
    answers: list[tuple[float, int]], load: int
) -> None:
    paces = Paces()
    for now, (seconds, there) in enumerate(answers):
        paces.began("a", "m", seconds, there, float(now))
    each = [seconds / (there + 1) for seconds, there in answers]
    wait = paces.wait("a", "m", load)
    assert min(each) * (load + 1) <= wait * 1.000001
    assert wait <= max(each) * (load + 1) * 1.000001
    assert paces.wait("a", "m", load + 1) > wait
    assert paces.wait("new", "m", load) == wait  # it is tried


def test_a_slower_host_gets_fewer() -> None:
    paces = Paces()
    paces.began("quick", "m", 0.1, 0, 0.0)
    paces.began("slow", "m", 0.4, 0, 0.0)
    assert paces.wait("quick", "m", 2) < paces.wait("slow", "m", 0)
    paces.forget("slow")
    assert paces.wait("slow", "m", 0) == paces.wait("quick", "m", 0)


def seen(taking: str = "ok", age: float = 0.0) -> Seen:
    return Seen(HostReport("a", "http://a", taking), age)


def test_a_host_is_out_when_it_says_so_and_when_nothing_is_heard_of_it() -> None:
    health = Health()
    assert health.why_out(seen(), 0.0) == ""
    assert health.why_out(seen("draining"), 0.0) == "draining"
    assert health.why_out(seen(age=STALE + 1), 0.0) == "no report for 6 s"


@given(st.lists(st.floats(0, 20), min_size=1, max_size=12))
def test_a_host_that_fails_is_left_alone_for_longer_each_time_and_always_tried_again(
    pauses: list[float],
) -> None:
    health, now, last = Health(), 0.0, 0.0
    for pause in pauses:
        now += pause
        fails_anew = health.why_out(seen(), now) == ""
        health.failed("a", now)
        assert health.why_out(seen(), now) == "it did not answer"
        until = next(t for t in (now + 0.5 * step for step in range(70)) if not health.why_out(seen(), t))
        if fails_anew:
            assert until - now >= min(last, 29.5)
            last = until - now
    assert health.why_out(seen(), now + 30.0) == ""
    health.answered("a")
    assert health.why_out(seen(), now) == ""


@given(st.integers(1, 10), st.booleans())
def test_what_has_told_something_is_never_tried_again_and_nothing_for_ever(lost: int, told: bool) -> None:
    assert may_retry(lost, told=told) == (not told and lost < TRIES)


def test_a_model_has_left_where_a_refusal_contradicts_the_report() -> None:
    assert has_left(503, comes=False, there=True)
    assert not has_left(429, comes=False, there=True)  # its queue is full
    assert not has_left(503, comes=True, there=True)  # it loads, or restarts
    assert not has_left(503, comes=False, there=False)  # an operator has unloaded it


def test_a_request_that_may_have_been_computed_is_no_refusal() -> None:
    assert [status for status in (200, 400, 404, 429, 500, 502, 503) if refused(status)] == [429, 503]


@pytest.mark.parametrize(
    ("chunk", "kind", "nothing"),
    [
        (b": waiting, 3 ahead\n\n", EVENTS, True),
        (b": working\n\n: working\n\n", EVENTS, True),
        (b": working\n\ndata: {}\n\n", EVENTS, False),
        (b"event: message_start\n", EVENTS, False),
        (b" ", LINES, True),
        (b' {"done": false}\n', LINES, False),
    ],
)
def test_signs_of_life_say_nothing(chunk: bytes, kind: str, nothing: bool) -> None:
    assert says_nothing(chunk, kind) is nothing


hosts = st.text("abcdefgh", min_size=1, max_size=1)


@given(st.integers(1, 5), st.lists(hosts, max_size=12))
def test_every_file_is_served_before_one_is_twice_and_nobody_changes_its_own(
    count: int, came: list[str]
) -> None:
    files = [f"host-{number}.toml" for number in range(count)]
    held: dict[str, str] = {}
    for host in came:
        before = held.get(host)
        held[host] = assign(files, held, host, {})
        assert before in (None, held[host])
    holders = [list(held.values()).count(file) for file in files]
    assert max(holders) - min(holders) <= 1


def test_a_host_takes_the_place_of_a_lost_one_and_one_more_goes_where_the_work_is() -> None:
    files = ["host-0.toml", "host-1.toml"]
    assert assign(files, {"a": "host-0.toml"}, "b", {"host-0.toml": 9.0}) == "host-1.toml"
    both = {"a": "host-0.toml", "b": "host-1.toml"}
    assert assign(files, both, "c", {"host-1.toml": 2.0}) == "host-1.toml"
    assert assign(files, {"a": "gone.toml"}, "a", {}) == "host-0.toml"


def test_lists_are_one_with_each_name_once_as_ready_as_it_is() -> None:
    def listed(**states: str) -> bytes:
        rows = [{"id": name, "status": state} for name, state in states.items()]
        return json.dumps({"object": "list", "data": rows}).encode()

    both = json.loads(merged([listed(a="asleep", b="ready"), b"no list", listed(a="ready", c="failed")]))
    assert both["object"] == "list"
    assert {row["id"]: row["status"] for row in both["data"]} == {"a": "ready", "b": "ready", "c": "failed"}
    assert merged([b"no list", b"nor this"]) == b"no list"
    page = {"data": [{"id": "b"}], "first_id": "b", "last_id": "b", "has_more": False}
    other = json.dumps(page | {"data": [{"id": "z"}]}).encode()
    assert json.loads(merged([json.dumps(page).encode(), other]))["last_id"] == "z"
    tags = [json.dumps({"models": [{"name": name}]}).encode() for name in ("x", "y", "x")]
    assert [row["name"] for row in json.loads(merged(tags))["models"]] == ["x", "y"]
