"""TLS by files, and what happens when they are renewed."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.http_door import Scripted

from muxd.api.app import make_app, make_runner
from muxd.api.guests import GuestSite, HttpLimits
from muxd.api.listen import listeners
from muxd.api.metrics import HttpMetrics
from muxd.api.tls import Certificate
from muxd.errors import ConfigError

pytestmark = pytest.mark.anyio
Issue = Callable[[str], None]
CERTIFICATES = Path(__file__).parents[1] / "support" / "certificates"


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """A new certificate and key at cert.pem and key.pem, of two that are good for a century."""

    def made(name: str) -> None:
        for kind in ("cert", "key"):
            (tmp_path / f"{kind}.pem").write_bytes((CERTIFICATES / f"{name}.{kind}.pem").read_bytes())

    return made


async def test_a_renewed_certificate_holds(serving: Scripted, tmp_path: Path, issue: Issue) -> None:
    issue("first")
    clock = HandClock()
    certificate = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), clock)
    app = make_app(serving, max_body=1 << 20, metrics=HttpMetrics(CollectorRegistry()), texts=serving)
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.context).start()
    url = f"https://localhost:{runner.addresses[0][1]}"

    async def answered() -> int:
        """By a client that trusts what the file holds now, and nothing else."""
        trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        async with aiohttp.ClientSession() as http:
            body = {"model": "base", "prompt": "x", "stream": True}
            async with http.post(f"{url}/v1/completions", json=body, ssl=trust) as answer:
                assert (await answer.read()).endswith(b"data: [DONE]\n\n")
                return answer.status

    assert await answered() == 200
    issue("second")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await answered()
    clock.time += 2
    assert await answered() == 200
    (tmp_path / "cert.pem").rename(tmp_path / "kept.pem")
    (tmp_path / "cert.pem").write_text("broken")
    clock.time += 2
    trust = ssl.create_default_context(cafile=str(tmp_path / "kept.pem"))
    async with aiohttp.ClientSession() as http, http.get(f"{url}/health", ssl=trust) as answer:
        assert answer.status == 200
    await runner.cleanup()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("broken")
    for name in ("cert.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=r"server\.tls_cert"):
            Certificate(str(tmp_path / name), str(tmp_path / "key.pem"), HandClock())


def test_an_encrypted_key_is_named_and_nobody_is_asked(tmp_path: Path, issue: Issue) -> None:
    issue("first")
    with pytest.raises(ConfigError, match=r"server\.tls_key: .*encrypted\.key\.pem is encrypted"):
        Certificate(str(tmp_path / "cert.pem"), str(CERTIFICATES / "encrypted.key.pem"), HandClock())


async def test_a_handshake_has_as_long_as_headers_have(
    serving: Scripted, tmp_path: Path, issue: Issue
) -> None:
    """Who connects and says nothing is shown out."""
    issue("first")
    certificate = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), HandClock())
    metrics = HttpMetrics(CollectorRegistry())
    limits = HttpLimits(header_timeout=0.5)
    app = make_app(serving, max_body=1 << 20, metrics=metrics, texts=serving, limits=limits)
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    (socket,) = listeners(["127.0.0.1"], 0)
    await GuestSite(runner, socket, ssl_context=certificate.context).start()
    reader, writer = await asyncio.open_connection(*socket.getsockname())
    assert await asyncio.wait_for(reader.read(), 30) == b""  # asyncio alone would wait for a minute
    writer.close()
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    url = f"https://localhost:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as http, http.get(f"{url}/health", ssl=trust) as answer:
        assert answer.status == 200
    await runner.cleanup()
