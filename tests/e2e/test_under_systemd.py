"""What systemd hears of a daemon from its start to its end, what an operator does with it meanwhile, and what
workers must not see of systemd."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue

import httpx2 as httpx
import pytest
from support.live import LiveDaemon, live
from support.shared import until
from support.tiny import tiny_served


class Manager:
    """Reads whatever the daemon says, as systemd does."""

    def __init__(self, daemon: LiveDaemon):
        self._said: Queue[str] = Queue()
        self.alive = threading.Semaphore(0)  # one for each sign of life
        self._socket = daemon._notify
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while said := self._socket.recv(4096).decode():
            self.alive.release() if said == "WATCHDOG=1" else self._said.put(said)

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def heard(self, word: str) -> list[str]:
        """What was said up to the datagram that begins with ``word``."""
        said: list[str] = []
        while not (said and said[-1].startswith(word)):
            said.append(self._said.get(timeout=60))
        return said


def muxctl(daemon: LiveDaemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxctl", "--socket", str(daemon.socket), *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


# What systemd does with muxd.socket: it listens, and hands the socket on as descriptor 3.
_SOCKET_UNIT = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[1], sys.argv[1:])
"""


def ask(daemon: LiveDaemon, tokens: int) -> httpx.Response:
    body = {"model": "m", "prompt": "secret words", "max_tokens": tokens, "ignore_eos": True}
    return httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=120)


def test_a_service_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    folder = tiny_served(tmp_path / "m")
    text = f'[server]\nlog_format = "json"\n[pool]\nbytes = "8M"\n[[model]]\nname = "m"\npath = "{folder}"\n'
    by = [sys.executable, "-c", _SOCKET_UNIT]
    with live(text, tmp_path, by=by) as daemon, Manager(daemon) as manager:
        for _ in range(3):
            assert manager.alive.acquire(timeout=60)
        for pid in daemon.workers().values():
            told = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET=" not in told
            assert b"WATCHDOG_USEC=" not in told
            assert b"LISTEN_FDS=" not in told
        assert not daemon.url.endswith(":0"), "the address is the one that was handed on"

        came = muxctl(daemon, "reload")
        assert (came.returncode, came.stdout) == (0, "configuration reloaded: no model changes\n")
        first, second = manager.heard("READY=1")
        assert first.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert "STATUS=configuration reloaded: no model changes" in second
        (tmp_path / "muxd.toml").write_text(text + "nonsense = 1\n")
        came = muxctl(daemon, "reload")
        assert (came.returncode, came.stderr) == (1, "")
        assert "configuration not reloaded" in came.stdout
        assert "nonsense" in came.stdout
        assert "nonsense" in manager.heard("READY=1")[-1]

        check_drain(daemon)
        check_log(daemon)
        daemon.admin.stop(wait=60)
        assert manager.heard("STOPPING=1") == ["STOPPING=1\nSTATUS=stopping"]


def check_drain(daemon: LiveDaemon) -> None:
    """What runs is answered, what comes is told to come later, and afterwards all is as before."""
    answers: list[httpx.Response] = []
    running = threading.Thread(target=lambda: answers.append(ask(daemon, 60)))
    running.start()
    until(lambda: daemon.status().requests.running == 1)
    drained = list(daemon.admin.drain())
    running.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 60
    assert (drained[-1].taking, drained[-1].left) == ("draining", 0)
    refused = ask(daemon, 1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "30"
    health = httpx.get(f"{daemon.url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    assert httpx.get(f"{daemon.url}/health/m").status_code == 503
    ended = muxctl(daemon, "drain", "--end")
    assert (ended.returncode, ended.stdout) == (0, "muxd takes requests.\n")
    assert ask(daemon, 1).status_code == 200
    assert [one.kind for one in daemon.admin.events()][-2:] == ["draining", "drain ended"]


def check_log(daemon: LiveDaemon) -> None:
    """Every line is an object, a request is one of them, and `muxctl logs` has the same lines."""
    lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "muxd.access" and line["level"] == "info"]
    assert [line["status"] for line in access] == [200, 503, 200]
    assert access[0]["completion_tokens"] == 60
    assert access[0]["ttft_ms"] > 0
    assert "secret" not in daemon.log
    shown = muxctl(daemon, "logs", "-n", "3").stdout.splitlines()
    assert len(shown) == 3
    assert any("status=200 outcome=served" in line for line in shown)
    followed = daemon.admin.follow_logs()
    numbers = [next(followed).number for _ in range(3)]
    followed.close()  # type: ignore[attr-defined]  # a generator
    assert numbers == [1, 2, 3]
