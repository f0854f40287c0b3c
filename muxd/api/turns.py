"""Long lists gone through a few at a time: a thousand at a stretch would be a gap in every stream."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")
_EACH = 16  # between two looks at everybody else's work


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    for index, item in enumerate(items, 1):
        yield item
        if index % _EACH == 0:
            await asyncio.sleep(0)
