"""TLS by files, and what happens when they are renewed."""

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.http_door import Scripted

from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.api.tls import Certificate
from muxd.errors import ConfigError

pytestmark = pytest.mark.anyio
Issue = Callable[[str], None]


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """A new certificate and key at cert.pem and key.pem."""

    def made(name: str) -> None:
        files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"))
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost")
        try:
            subprocess.run(
                ["openssl", "req", "-x509", *kind, *files, *subject], check=True, capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("needs openssl to make a certificate")

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
