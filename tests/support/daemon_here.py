"""A whole daemon in the test's own process, its workers real: what happens inside it can be looked at."""

import asyncio
from collections.abc import Awaitable, Callable

from muxd.daemon import Daemon


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
