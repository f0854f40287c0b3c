"""Long lists gone through a few at a time: a thousand at a stretch would be a gap in every stream. And work
side by side."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import TypeVar

T = TypeVar("T")
_EACH = 16  # between two looks at everybody else's work


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    for index, item in enumerate(items, 1):
        yield item
        if index % _EACH == 0:
            await asyncio.sleep(0)


async def together(work: list[Coroutine[None, None, None]]) -> None:
    """Run all; the first failure stops the others and is raised as itself."""
    if len(work) == 1:
        return await work[0]
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
