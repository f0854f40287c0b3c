"""A daemon in this process, for what can only be made up inside it: how much memory the machine has."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from muxd.config_load import load
from muxd.daemon import Daemon
from support.daemon_here import machine_of
from support.two_units import models
from support.where import Where

Scene = Callable[[Daemon, aiohttp.ClientSession, list[int]], Coroutine[Any, Any, None]]
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def played(where: Where, root: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """A daemon of two devices, on a machine with 150 % of the memory of one copy beside the pools.

    The third argument of the scene is the machine's bytes, to be changed. The signals that the daemon takes
    end the scene, the daemon and then the tests, as they would without it. Raises KeyboardInterrupt.
    """
    file = root / "muxd.toml"
    tables = where.two_devices() + models(where, root, {"a": where.first})
    file.write_text(f'[server]\nport = 0\nsocket = "{root}/s"\n{tables}')
    weights = (root / "a" / "model.safetensors").stat().st_size
    machine = machine_of((32 << 20) + weights * 3 // 2, monkeypatch)
    theirs = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        interrupted = asyncio.run(_all_of_it(Daemon(load(file, env={})), scene, machine))
    finally:
        for number, handler in theirs.items():
            signal.signal(number, handler)
    if interrupted:
        raise KeyboardInterrupt


async def _all_of_it(daemon: Daemon, scene: Scene, machine: list[int]) -> bool:
    """Whether a signal has cut it short."""
    loop, ready, signalled = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    add = loop.add_signal_handler
    loop.add_signal_handler = lambda number, _: add(number, signalled.set)  # type: ignore[assignment,misc]
    life = asyncio.create_task(daemon.live(lambda service: ready.set(), lambda *_: None))

    async def play() -> None:
        await asyncio.wait_for(ready.wait(), 60)
        async with aiohttp.ClientSession(daemon.address) as session:
            await asyncio.wait_for(scene(daemon, session, machine), 120)

    played, told = asyncio.create_task(play()), asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait({played, told, life}, return_when=asyncio.FIRST_COMPLETED)
        if not signalled.is_set():
            await played
    finally:
        for task in (told, played):
            task.cancel()
        await asyncio.wait({told, played})
        daemon.stop()
        await life
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    return signalled.is_set()
