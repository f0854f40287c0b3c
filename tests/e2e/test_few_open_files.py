"""Clients hold every connection that they get: the descriptors that the daemon needs are not among them."""

import contextlib
import os
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

from support.live import live
from support.tiny import tiny_served

LIMIT = 256
UNFINISHED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 9\r\n\r\n"
)
FEW = ("sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh")


def test_where_clients_hold_all_connections_a_worker_is_replaced_all_the_same(tmp_path: Path) -> None:
    config = f'[pool]\nbytes = "16M"\n[[model]]\nname = "m"\npath = "{tiny_served(tmp_path / "m")}"\n'
    with (
        live(config, tmp_path, {"MUXD_DEVICE": "cpu"}, by=FEW) as daemon,
        daemon.client() as client,
        contextlib.ExitStack() as held,
    ):
        first = daemon.workers()["m"]
        stream = client.completions.create(
            model="m", prompt="abc", max_tokens=120, temperature=0, stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        chunks = iter(stream)
        seen = list(next(chunks).choices[0].token_ids)  # type: ignore[attr-defined]
        address = urlsplit(daemon.url)
        for _ in range(LIMIT + 50):
            one = held.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
            with contextlib.suppress(ConnectionError):  # it was one too many
                one.sendall(UNFINISHED)
        os.kill(first, signal.SIGKILL)
        for chunk in chunks:
            seen += getattr(chunk.choices[0], "token_ids", [])
        assert len(seen) == 120
        while daemon.workers().get("m", first) == first:
            pass  # the answer may have been whole before the worker was killed
        assert "limits.connections: 64 instead of 4096" in daemon.log
