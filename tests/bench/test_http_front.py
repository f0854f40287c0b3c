"""The two servers that are compared answer every stream whole."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("kind", ["front", "bare"])
def test_every_stream_comes_to_its_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import http_front

    monkeypatch.setattr(http_front, "TOKENS", 20)

    async def served() -> list[Any]:
        paced = http_front.Paced()
        pacing = asyncio.ensure_future(paced.run())
        async with getattr(http_front, kind)(paced) as port:
            await http_front.read_all(port, 3)
        pacing.cancel()
        return list(paced.writers)

    assert asyncio.run(served()) == []
