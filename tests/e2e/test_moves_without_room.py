"""A machine with memory for one copy only: requests wait while a model moves, and come back if they must."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.in_process import played
from support.two_units import body
from support.where import Where, on

from muxd.daemon import Daemon
from muxd.errors import MuxdError

pytestmark = [on("cpu"), pytest.mark.usefixtures("two_devices")]  # what the machine has is made up here


async def ask(session: aiohttp.ClientSession, tokens: int = 16) -> list[int]:
    async with session.post("/v1/completions", json=body("a", tokens)) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json())["choices"][0]["token_ids"])


async def stream(session: aiohttp.ClientSession, tokens: int, first: asyncio.Event) -> list[int]:
    got: list[int] = []
    async with session.post("/v1/completions", json=body("a", tokens, stream=True)) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                got += json.loads(line[6:])["choices"][0].get("token_ids") or []
                first.set()
    return got


async def under_way(daemon: Daemon, session: aiohttp.ClientSession) -> list[Any]:
    """The steps of a move that has begun to drain, and requests that were sent before and after."""
    first = asyncio.Event()
    running = asyncio.create_task(stream(session, 2000, first))
    await first.wait()
    steps = daemon.roster.move("a", "cpu:1").watch()
    async for step in steps:
        if step.stage == "draining":
            break
    later = [asyncio.create_task(ask(session)) for _ in range(3)]
    return [steps, running, *later]


def test_requests_wait_while_it_moves(where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, session: aiohttp.ClientSession, machine: list[int]) -> None:
        alone = await ask(session)
        steps, running, *later = await under_way(daemon, session)
        assert [step.stage async for step in steps][-1] == "moved"
        assert len(await running) == 2000
        assert [await one for one in later] == [alone] * 3
        assert daemon.entries["a"].device == "cpu:1"
        assert daemon.observer.outcomes == {"served": 5}
        for site in daemon.sites.values():
            site.arena.ledger.audit()
            assert site.arena.ledger.unheld_blocks == site.arena.ledger.total_blocks
        assert list(daemon.sites["cpu:0"].supervisors) == []

    played(where, tmp_path, monkeypatch, scene)


def test_they_come_back_when_it_cannot_be_loaded_there(
    where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon, session: aiohttp.ClientSession, machine: list[int]) -> None:
        alone = await ask(session)
        steps, running, *later = await under_way(daemon, session)
        file = tmp_path / "a" / "model.safetensors"
        whole = file.read_bytes()
        target = daemon.sites["cpu:1"]
        bring_up = target.bring_up

        async def broken(*args: Any, **more: Any) -> None:
            """Its weights cannot be read while it is loaded at the target."""
            file.write_bytes(whole[:5000])
            try:
                await bring_up(*args, **more)
            finally:
                file.write_bytes(whole)

        monkeypatch.setattr(target, "bring_up", broken)
        with pytest.raises(MuxdError, match="safetensors"):
            async for _ in steps:
                pass
        assert len(await running) == 2000
        assert [await one for one in later] == [alone] * 3
        assert (daemon.entries["a"].device, daemon.entries["a"].state) == ("cpu:0", "ready")
        assert daemon.observer.outcomes == {"served": 5}
        assert list(target.supervisors) == []
        assert list(target.unit.lanes) == []

    played(where, tmp_path, monkeypatch, scene)
