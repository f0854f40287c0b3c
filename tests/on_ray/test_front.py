"""The ingress over real daemons, without Ray: every face, streams, cancels, drains, hosts that are lost."""

import asyncio
import gzip
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
from msgspec import structs
from support.fleet_models import served
from support.live import LiveDaemon, live
from support.shared import until
from support.two_units import body

from muxd.admin.schemas import UnloadModel
from muxd.ray.asked import Asked
from muxd.ray.front import Front
from muxd.ray.health import STALE
from muxd.ray.host_daemon import HostDaemon
from muxd.ray.proxy import ProxyAnswer, ProxyCall, Stream
from muxd.ray.reports import HostReport, Seen


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveDaemon, LiveDaemon]]:
    """Two hosts: "shared" and "left" are at both, "own" and "other" at one each."""
    root = tmp_path_factory.mktemp("models")
    head = '[pool]\nbytes = "16M"\n[text]\nprocesses = 1\n'
    shared = served(root, "shared", 1) + served(root, "left", 4)
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with (
        live(head + shared + served(root, "own", 2), first) as one,
        live(head + shared + served(root, "other", 3), second) as two,
    ):
        yield one, two


def report(daemon: LiveDaemon, name: str) -> HostReport:
    host = HostDaemon(name, "127.0.0.1", socket=str(daemon.socket))
    host.begin()
    return host.report()


def played(
    daemons: tuple[LiveDaemon, LiveDaemon], scene: Callable[[Front, list[HostReport]], Awaitable[None]]
) -> None:
    """``scene`` with an ingress that has heard of both."""

    async def all_of_it() -> None:
        front = Front()
        reports = [report(daemon, name) for daemon, name in zip(daemons, ("one", "two"), strict=True)]
        front.proxy.heard([Seen(one, 0.0) for one in reports])
        try:
            await scene(front, reports)
        finally:
            await front.close()

    asyncio.run(all_of_it())


def post(path: str, asked: dict[str, Any], **headers: str) -> ProxyCall:
    shown = [
        ("Content-Type", "application/json"),
        *((key.replace("_", "-"), it) for key, it in headers.items()),
    ]
    data = json.dumps(asked).encode()
    return ProxyCall("POST", path, "", shown, data, "192.0.2.7", "an-id")


def read(answer: ProxyAnswer) -> dict[str, Any]:
    assert isinstance(answer.body, bytes)
    return dict(json.loads(answer.body))


async def text(answer: ProxyAnswer) -> bytes:
    assert isinstance(answer.body, Stream)
    return b"".join([chunk async for chunk in answer.body])


def test_answers_are_those_of_the_hosts_at_every_face(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    said = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
    plain = {"input": "hello", "temperature": 0, "max_output_tokens": 8}
    ollama = {"messages": said["messages"], "options": {"temperature": 0, "num_predict": 8}, "stream": False}
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": said, "/v1/messages": said, "/v1/responses": plain, "/api/chat": ollama,
        "/v1/completions": {"prompt": "hello", "temperature": 0, "max_tokens": 8},
        "/tokenize": {"prompt": "hi"},
    }  # fmt: skip

    async def scene(front: Front, reports: list[HostReport]) -> None:
        for path, fields in asked.items():
            for model, daemon in (("own", both[0]), ("other", both[1])):
                call = post(path, fields | {"model": model})
                answer = await front.answer(call)
                direct = httpx.post(f"{daemon.url}{path}", json=fields | {"model": model}, timeout=60)
                assert (answer.status, direct.status_code) == (200, 200), (path, answer.body, direct.text)
                assert parts(read(answer)) == parts(direct.json())

    played(both, scene)


def parts(answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same each time it is asked."""
    named = json.loads(
        json.dumps(answer), object_hook=lambda one: {k: v for k, v in one.items() if k != "id"}
    )
    times = ("created", "created_at", "completed_at")
    slow = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "usage")
    return {key: value for key, value in named.items() if key not in (*times, *slow)}


def test_streams_come_in_chunks_with_equal_tokens(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        direct = httpx.post(f"{both[0].url}/v1/completions", json=body("shared", 40), timeout=60).json()
        call = post("/v1/completions", body("shared", 40, stream=True))
        answers = await asyncio.gather(*(front.answer(call) for _ in range(6)))
        assert {front.hosts.load(host) for host in ("one", "two")} == {3}  # none is preferred
        for answer in answers:
            frames = (await text(answer)).split(b"\n\n")
            assert frames[-2:] == [b"data: [DONE]", b""]
            choices = [json.loads(frame[6:])["choices"][0] for frame in frames[:-2]]
            ids = [token for one in choices for token in one.get("token_ids") or []]
            assert ids == direct["choices"][0]["token_ids"]
        assert {front.hosts.load(host) for host in ("one", "two")} == {0}

    played(both, scene)


def test_headers_and_bodies_go_through_as_they_are(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        asked = body("own", 4)
        plain = post("/v1/completions", asked, x_request_id="mine")
        call = ProxyCall(
            "POST",
            "/completions/",
            "",
            [*plain.headers, ("Content-Encoding", "gzip")],
            gzip.compress(plain.body),
        )
        answer = await front.answer(call)
        assert answer.status == 200, answer.body
        shown = {name.lower(): value for name, value in answer.headers}
        assert shown["x-request-id"] == "mine"
        assert "transfer-encoding" not in shown
        refused = await front.answer(post("/v1/completions", asked | {"max_tokens": -7, "unknown": 1}))
        assert (refused.status, read(refused)["error"]["param"]) == (400, "max_tokens")

    played(both, scene)


def test_prompts_that_begin_alike_go_to_one_host(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        for number in range(6):
            prompt = f"{number % 2} " + "the same " * 60 + str(number)
            asked = {"model": "shared", "prompt": prompt, "max_tokens": 1}
            assert (await front.answer(post("/v1/completions", asked))).status == 200

    before = [daemon.status().requests.served for daemon in both]
    played(both, scene)
    served = [daemon.status().requests.served - start for daemon, start in zip(both, before, strict=True)]
    assert sum(served) == 6
    assert all(count % 3 == 0 for count in served)


def test_lists_health_and_refusals(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        async def get(path: str, *headers: tuple[str, str]) -> ProxyAnswer:
            return await front.answer(ProxyCall("GET", path, headers=list(headers), id="an-id"))

        names = [row["id"] for row in read(await get("/v1/models"))["data"]]
        assert sorted(names) == ["left", "other", "own", "shared"]
        assert {row["name"] for row in read(await get("/api/tags"))["models"]} == set(names)
        assert read(await get("/v1/models/other"))["id"] == "other"
        assert read(await get("/health"))["hosts"] == {"one": "ok", "two": "ok"}
        assert read(await get("/health/own")) == {"status": "ready"}
        missing = await front.answer(post("/v1/completions", body("nobody")))
        assert (missing.status, read(missing)["error"]["code"]) == (404, "model_not_found")
        assert read(await get("/metrics"))["error"]["code"] == "unknown_url"
        assert read(await get("/nothing"))["error"]["type"] == "invalid_request_error"
        front.proxy.heard([])
        none = await front.answer(post("/v1/messages", {"model": "own"}))
        assert none.status == 503
        assert read(none)["error"]["type"] == "overloaded_error"
        assert ("Retry-After", "5") in none.headers
        assert (await get("/health")).status == 503

    played(both, scene)


async def sent(front: Front, host: str, count: int) -> None:
    """So many are under way there: after some turns of the loop, and no time."""
    while front.hosts.load(host) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def requests(daemon: LiveDaemon, running: int) -> int:
    """Wait until so many run there; returns how many have been cancelled."""

    def reached() -> bool:
        now = daemon.status().requests
        return (now.running, now.waiting) == (running, 0)

    await asyncio.to_thread(until, reached)
    return daemon.status().requests.cancelled


def test_a_client_that_goes_away_cancels_at_the_host(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        before = await requests(both[0], 0)
        answer = await front.answer(post("/v1/completions", body("own", 8000, stream=True)))
        assert isinstance(answer.body, Stream)
        await anext(answer.body)
        answer.body.close()
        assert await requests(both[0], 0) == before + 1
        waiting = asyncio.create_task(front.answer(post("/v1/completions", body("own", 8000))))
        await requests(both[0], 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert front.hosts.load("one") == 0
        assert await requests(both[0], 0) == before + 2

    played(both, scene)


def test_what_a_drained_host_refuses_another_one_answers(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        for _ in both[0].admin.drain():
            pass
        try:
            for _ in range(4):
                assert (await front.answer(post("/v1/completions", body("shared", 4)))).status == 200
            alone = await front.answer(post("/v1/completions", body("own", 4)))
            assert (alone.status, read(alone)["error"]["code"]) == (503, "draining")
            front.proxy.heard([Seen(report(both[0], "one"), 0.0), Seen(reports[1], 0.0)])
            assert front.hosts.why_out() == {"one": "draining", "two": ""}
            nowhere = await front.answer(post("/v1/completions", body("own", 4)))
            assert (nowhere.status, read(nowhere)["error"]["code"]) == (503, "no_host")
        finally:
            for _ in both[0].admin.drain(end=True):
                pass

    played(both, scene)


@pytest.fixture(scope="module")
def old_news(both: tuple[LiveDaemon, LiveDaemon]) -> list[HostReport]:
    """Reports of before "left" was at "two"; by now it has left "one"."""
    one, two = (report(daemon, name) for daemon, name in zip(both, ("one", "two"), strict=True))
    for _ in both[0].admin.unload(UnloadModel("left")):
        pass
    without = {name: model for name, model in two.models.items() if name != "left"}
    return [one, structs.replace(two, models=without)]


@pytest.mark.parametrize("late", [False, True], ids=["news-before-the-refusal", "news-after-it"])
def test_a_model_that_has_left_its_host_is_found_at_the_next(
    both: tuple[LiveDaemon, LiveDaemon], old_news: list[HostReport], late: bool
) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        front.proxy.heard([Seen(one, 0.0) for one in old_news])
        refused, there = asyncio.Event(), front.hosts.there

        def asked_whether_there(host: str, asked: Asked) -> bool:
            refused.set()
            return there(host, asked)

        front.hosts.there = asked_whether_there  # type: ignore[method-assign]
        answer = asyncio.create_task(front.answer(post("/v1/completions", body("left", 4))))
        await (refused.wait() if late else sent(front, "one", 1))
        front.proxy.heard([Seen(one, 0.0) for one in reports])
        assert (await answer).status == 200
        assert front.proxy.retries == 1

    played(both, scene)


def test_a_model_that_has_left_and_is_nowhere_is_refused(
    both: tuple[LiveDaemon, LiveDaemon], old_news: list[HostReport]
) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        front.proxy.heard([Seen(one, 0.0) for one in old_news])
        answer = await front.answer(post("/v1/completions", body("left", 4)))
        assert (answer.status, read(answer)["error"]["code"]) == (503, "model_unloaded")

    played(both, scene)


@pytest.fixture
def stopped(both: tuple[LiveDaemon, LiveDaemon]) -> Iterator[LiveDaemon]:
    """The first daemon stands still, as on a machine that has lost its network: connections stay open."""
    os.kill(both[0].process.pid, signal.SIGSTOP)
    yield both[0]
    os.kill(both[0].process.pid, signal.SIGCONT)


def test_what_a_lost_host_has_not_answered_another_one_does(
    both: tuple[LiveDaemon, LiveDaemon], stopped: LiveDaemon
) -> None:
    """Nothing tells that a host is lost but that its reports stop."""

    async def scene(alone: bool) -> None:
        front = Front()
        alive = report(both[1], "two")
        gone = HostReport("one", stopped.url, "ok", alive.models)
        front.proxy.heard([Seen(gone, 0.0)] if alone else [Seen(gone, 0.0), Seen(alive, 0.0)])
        asked = [post("/v1/completions", body("shared", 8, stream=stream)) for stream in (False, True)]
        try:
            under_way = [asyncio.create_task(front.answer(call)) for call in asked * 2]
            await sent(front, "one", 2)
            front.proxy.heard([Seen(gone, STALE + 1), Seen(alive, 0.0)])
            for answer in await asyncio.gather(*under_way):
                assert answer.status == (502 if alone else 200)
                if isinstance(answer.body, Stream):
                    assert b"[DONE]" in await text(answer)
            assert front.hosts.load("two") == 0
        finally:
            await front.close()

    asyncio.run(scene(alone=True))  # when they were asked there was nobody else
    asyncio.run(scene(alone=False))


def test_a_stream_that_has_told_something_ends_with_an_error(both: tuple[LiveDaemon, LiveDaemon]) -> None:
    async def scene(front: Front, reports: list[HostReport]) -> None:
        asked: dict[str, dict[str, Any]] = {
            "/v1/completions": {"prompt": "x", "max_tokens": 8000, "ignore_eos": True},
            "/api/generate": {"prompt": "x", "options": {"num_predict": 8000}},
            "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8000},
        }
        streams = [
            await front.answer(post(path, fields | {"model": "own", "stream": True}))
            for path, fields in asked.items()
        ]
        for one in streams:
            assert isinstance(one.body, Stream)
            await anext(one.body)
        front.proxy.heard([Seen(reports[0], STALE + 1), Seen(reports[1], 0.0)])
        openai, ollama, anthropic = [await text(one) for one in streams]
        last = openai.split(b"\n\n")
        assert last[-2] == b"data: [DONE]"
        assert json.loads(last[-3].removeprefix(b"data: "))["error"]["code"] == "host_lost"
        assert "lost" in json.loads(ollama.splitlines()[-1])["error"]
        assert b'event: error\ndata: {"type":"error"' in anthropic

    played(both, scene)
