"""A model changes its host under load: two real daemons, the ingress between, and not one request is lost."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from support.fleet_models import served
from support.two_units import body

from muxd.placement.host_view import HostView
from muxd.placement.live import STEPS
from muxd.placement.replan import Policy
from muxd.ray.front import Front
from muxd.ray.host_daemon import HostDaemon
from muxd.ray.moving import Moving
from muxd.ray.proxy import ProxyCall
from muxd.ray.reports import Seen
from muxd.ray.settings import model_names

HEAD = '[pool]\nbytes = "16M"\n[text]\nprocesses = 1\n'
TOKENS = 24


def host(tmp: Path, name: str, text: str) -> HostDaemon:
    """A muxd of its own, as a node has it."""
    folder = tmp / name
    folder.mkdir()
    env = {"MUXD_HOME": str(folder), "XDG_RUNTIME_DIR": "", "STATE_DIRECTORY": ""}
    one = HostDaemon(name, "127.0.0.1", env=os.environ | env)
    one.expect(f"{name}.toml", text)
    one.begin()
    return one


def busy(view: HostView, rate: float) -> HostView:
    """As it would be on a slow device, asked that much: nobody waits for a drift in a test."""
    slow = structs.replace(view.peak, flops=2e7, bandwidth=2e7)
    asked = [structs.replace(one, load=structs.replace(one.load, rate=rate)) for one in view.models]
    return structs.replace(view, peak=slow, models=asked)


async def ask(front: Front, model: str) -> list[int]:
    data = json.dumps(body(model, TOKENS)).encode()
    headers = [("Content-Type", "application/json")]
    answer = await front.answer(ProxyCall("POST", "/v1/completions", "", headers, data, "192.0.2.7", ""))
    assert answer.status == 200, answer.body
    assert isinstance(answer.body, bytes)
    said: dict[str, Any] = json.loads(answer.body)
    found: list[int] = said["choices"][0]["token_ids"]
    return found


async def hear(moving: Moving, front: Front, hosts: list[HostDaemon]) -> list[Seen]:
    """What nodes do again and again: report, and carry out what they hear."""
    reports = [await asyncio.to_thread(one.report) for one in hosts]
    seen = [Seen(report, 0.0) for report in reports]
    front.proxy.heard(seen)
    for one in hosts:
        for order in moving.orders(one.host):
            error = await asyncio.to_thread(one.carried_out, order)
            moving.done(order.id, error, asyncio.get_running_loop().time())
    return seen


@pytest.mark.timeout(180)
def test_a_model_moves_while_it_is_asked(tmp_path: Path) -> None:
    tables = {name: served(tmp_path / "models", name, seed) for seed, name in enumerate(("a", "b", "c"))}
    texts = {"one": HEAD + tables["a"] + tables["b"], "two": HEAD + tables["c"]}
    hosts = [host(tmp_path, name, text) for name, text in texts.items()]
    try:
        asyncio.run(moved_under_load(hosts, texts))
    finally:
        for one in hosts:
            one.end(5.0)


async def moved_under_load(hosts: list[HostDaemon], texts: dict[str, str]) -> None:
    policy = Policy(steps=STEPS, least_gain=0.01, cooldown=0.0)
    moving = Moving({f"{name}.toml": text for name, text in texts.items()}, "t", policy)
    front, over = Front(), asyncio.Event()

    async def client(model: str, wanted: list[int]) -> int:
        count = 0
        while not over.is_set():
            assert await ask(front, model) == wanted
            count += 1
        return count

    now = asyncio.get_running_loop().time
    try:
        seen = await hear(moving, front, hosts)
        wanted = {model: await ask(front, model) for model in ("a", "b", "c")}
        clients = [asyncio.create_task(client(model, tokens)) for model, tokens in wanted.items()]
        began = now()
        for one, rate in zip(hosts, (4.0, 0.01), strict=True):
            moving.viewed(one.host, busy(await asyncio.to_thread(one.admin.host_view), rate), now())
        await moving.look(seen, began + 1)
        assert moving.orders("two"), "nothing moves"
        while any(moving.orders(one.host) for one in hosts):
            await hear(moving, front, hosts)
        at = {one.host: {m.name for m in one.admin.models() if m.state == "ready"} for one in hosts}
        (gone,) = {"a", "b"} - at["one"]
        assert at == {"one": {"a", "b"} - {gone}, "two": {"c", gone}}
        assert model_names(moving.files["two.toml"]) == ["c", gone]
        assert model_names(moving.files["one.toml"]) == sorted({"a", "b"} - {gone})
        await hear(moving, front, hosts)
        assert await ask(front, gone) == wanted[gone]
        over.set()
        assert all(count > 0 for count in await asyncio.gather(*clients))
        for one in hosts:
            assert not one.admin.audit().fault
    finally:
        over.set()
        await front.close()
