"""Each request that the stall benchmark sends, smaller: what comes back, and that the daemon serves on."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from support.live import live

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = 0.2  # of what the benchmark sends

pytestmark = pytest.mark.slow


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stall

    return stall


def test_every_hostile_request_is_answered_as_it_should_be(cases: Any, tmp_path: Path) -> None:
    with live(cases.folders(tmp_path, None), tmp_path, {"MUXD_DEVICE": "cpu"}) as daemon:
        address, before = urlsplit(daemon.url), daemon.workers()
        wrong = {}
        for case in cases.CASES:
            statuses = case.prepare(SIZE)(address.hostname, address.port)
            if not set(statuses) <= case.expected:
                wrong[case.name] = statuses
            body = {"model": cases.WATCHED, "prompt": "x", "max_tokens": 1}
            assert httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60).status_code == 200, (
                case.name
            )
        assert wrong == {}
        assert daemon.workers() == before
        assert "Traceback" not in daemon.log
