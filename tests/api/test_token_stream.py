"""The stream between engine and door: order, errors last, and one word back to the engine at most."""

import asyncio

import pytest

from muxd.engine.stream import TokenStream
from muxd.errors import WorkerLost

pytestmark = pytest.mark.anyio


@pytest.fixture
def closed() -> list[bool]:
    return []


@pytest.fixture
def stream(closed: list[bool]) -> TokenStream:
    return TokenStream(closed.append)


async def test_one_delta_for_all_that_waits(stream: TokenStream) -> None:
    stream.put(1)
    stream.put(2)
    assert (await anext(stream)).tokens == [1, 2]
    stream.put(3)
    stream.end("length")
    last = await anext(stream)
    assert (last.tokens, last.finish) == ([3], "length")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_tokens_come_before_the_error(stream: TokenStream) -> None:
    stream.put(1)
    stream.fail(WorkerLost("gone"))
    assert (await anext(stream)).tokens == [1]
    with pytest.raises(WorkerLost):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_close_is_told_once(stream: TokenStream, closed: list[bool]) -> None:
    stream.put(1)
    stream.close(served=True)
    stream.close()
    assert closed == [True]


async def test_close_after_the_engine_ended_it_is_not_told(closed: list[bool]) -> None:
    for error in (None, WorkerLost("gone")):
        stream = TokenStream(closed.append)
        stream.end("stop") if error is None else stream.fail(error)
        stream.close()
        stream.close()
    ended = TokenStream(closed.append)
    ended.fail(WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await anext(ended)
    ended.close()
    assert closed == []


async def test_close_wakes_a_reader_and_drops_later_tokens(stream: TokenStream) -> None:
    reader = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    stream.close()
    assert await reader is None
    stream.put(1)
    assert stream._tokens == []
