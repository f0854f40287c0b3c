"""A whole daemon in the test's own process, its workers real: what happens inside it can be looked at."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from muxd.daemon import Daemon
from muxd.device import cpu


def played(daemon: Daemon, scene: Callable[[], Awaitable[None]]) -> None:
    """Run ``scene`` once every model is ready or has failed, then end the daemon. Raises what ended it.

    Nothing looks at a clock: a slow machine takes its time, and what hangs is ended by pytest's timeout.
    """

    async def all_of_it() -> None:
        ready = asyncio.Event()
        life = asyncio.create_task(daemon.live(lambda _: ready.set(), lambda model, done, total: None))
        waits = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait([life, waits], return_when=asyncio.FIRST_COMPLETED)
            assert ready.is_set()
            await scene()
        finally:
            waits.cancel()
            daemon.stop()
            await life

    asyncio.run(all_of_it())


def machine_of(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with so much memory, which the regions of this process use; the list's number is to be
    changed."""
    machine = [nbytes]

    def available() -> tuple[int, str]:
        held = [region for region in cpu.Cpu._regions if not region.closed]
        return machine[0] - sum(region.nbytes - region.untouched for region in held), "the test"

    monkeypatch.setattr(cpu, "available_memory", available)
    return machine
