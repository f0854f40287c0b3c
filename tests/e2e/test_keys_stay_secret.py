"""An API key is only in the requests that carry it: no log, no process, no trace and no answer has it."""

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from support.live import LiveDaemon, live
from support.tiny import tiny_served

from muxd.api.keys import new_key, table
from muxd.engine.chrome import chrome


def test_no_key_is_told(tmp_path: Path) -> None:
    known, unknown = new_key(), new_key()
    (tmp_path / "keys.toml").write_text(table("alice", known) + "weight = 2.0\nactions = true\n")
    config = (
        '[server]\nkeys = "keys.toml"\nlog_level = "debug"\n[pool]\nbytes = "8M"\n'
        f'[[model]]\nname = "m"\npath = "{tiny_served(tmp_path / "m")}"\n'
    )
    with live(config, tmp_path) as daemon:
        told = [_asked(daemon, key) for key in (known, unknown)]
        told.append(_malformed(daemon, known))
        told.append(msgspec.json.encode(chrome(daemon.admin.trace())).decode())
        told.append(repr(daemon.admin.events()))
        pids = [daemon.process.pid, *(row.pid for row in daemon.admin.ps())]
        for pid in pids:
            told += [Path(f"/proc/{pid}/{name}").read_bytes().decode() for name in ("cmdline", "environ")]
    told.append(daemon.log)
    assert "key=alice" in daemon.log
    assert len(pids) > 2
    for text in told:
        assert not any(part in text for key in (known, unknown) for part in (key, key[8:24]))


def _asked(daemon: LiveDaemon, key: str) -> str:
    """Answers of every kind: good ones, refusals, an id that is asked about."""
    where = urlsplit(daemon.url)
    said = []
    for path, body in (
        ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 3, "user": key[:4]}),
        ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 3, "stream": True}),
        ("/v1/completions", {"model": "m", "temperature": 9}),
        ("/v1/nowhere", {}),
    ):
        for name, value in (("Authorization", f"Bearer {key}"), ("x-api-key", key)):
            door = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)
            door.request("POST", path, json.dumps(body), {name: value, "Content-Type": "application/json"})
            answer = door.getresponse()
            said.append(f"{answer.headers}{answer.read().decode()}")
            door.close()
    return "".join(said)


def _malformed(daemon: LiveDaemon, key: str) -> str:
    where = urlsplit(daemon.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as door:
        door.sendall(f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\nbad header\r\n\r\n".encode())
        said = b""
        while data := door.recv(4096):
            said += data
    return said.decode()
