"""A loop of each kind, and a wire in it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from support.wire import Bench

from muxd.link.daemon_end import private_directory


@pytest.fixture(scope="module", autouse=True)
def libuv_is_initialised() -> None:
    """libuv opens one pipe for signals per process, at its first loop: no leak of ours."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Run a scene with a bench in a fresh loop; the directory must be empty afterwards."""

    def run(scene: Callable[[Bench], Awaitable[None]]) -> None:
        directory = private_directory()

        async def whole() -> None:
            bench = Bench(directory)
            try:
                await asyncio.wait_for(scene(bench), 60)
            finally:
                bench.end.close()

        if request.param == "uvloop":
            uvloop.run(whole())
        else:
            asyncio.run(whole())
        directory.rmdir()  # fails if the socket file is left

    return run
