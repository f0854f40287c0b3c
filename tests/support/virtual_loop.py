"""An event loop whose time passes when nobody has anything to do: seconds of waiting cost nothing, and the
same program takes the same course every time."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from muxd.clock import VirtualClock

_LAG = 0.05  # seconds that work in a thread takes


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: VirtualClock):
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self._clock.advance(max(0.0, timeout))
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """On ``clock``. What would run in a thread runs here, a moment after it was asked for."""

    def __init__(self, clock: VirtualClock):
        self._virtual = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._virtual.now()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(_LAG, run)
        return future
