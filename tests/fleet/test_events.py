"""The log of decisions: bounded, in order, and followed without a gap until the daemon stops."""

import asyncio

from muxd.engine.trace import Mark
from muxd.fleet.events import KEPT, Events
from muxd.fleet.ring import until


def test_it_is_bounded_and_asked_by_model() -> None:
    async def scene() -> None:
        events = Events(lambda: 5.0)
        for n in range(KEPT + 10):
            events.add("loaded", "ab"[n % 2], "cpu:0", str(n), {"n": n})
        kept = events.since()
        assert [one.number for one in kept] == list(range(11, KEPT + 11))
        assert {one.model for one in events.since(model="b")} == {"b"}
        assert events.since(KEPT + 9)[0].numbers == {"n": KEPT + 9}
        tell = events.teller("cpu:1")
        for kind in ("preempted", "quota moved", "worker lost"):
            tell(Mark(1.0, kind, "a", "why"))
        last = events.since(KEPT + 10)
        assert [(one.kind, one.device, one.detail, one.time) for one in last] == [
            ("worker lost", "cpu:1", "why", 5.0)
        ]

    asyncio.run(scene())


def test_who_follows_misses_nothing_and_ends_with_the_daemon() -> None:
    async def scene() -> None:
        events, over = Events(lambda: 0.0), asyncio.Event()
        events.add("loading", "a")
        following = until(over, events.follow(model="a"))
        assert (await anext(following)).kind == "loading"
        coming = asyncio.ensure_future(anext(following))
        for _ in range(3):
            events.add("worker ready", "b")
            events.add("worker ready", "a")
        found = [await coming, *[await anext(following) for _ in range(2)]]
        assert [(one.model, one.number) for one in found] == [("a", 3), ("a", 5), ("a", 7)]
        waiting = asyncio.ensure_future(anext(following, None))
        over.set()
        assert await waiting is None
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scene())
