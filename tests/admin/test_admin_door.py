"""The local door over a real Unix socket: what it answers, and what its client makes of bad answers."""

import asyncio
import http.client
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from support.scripted_daemon import MODELS, PROCESSES, ScriptedService, scripted

from muxd import __version__
from muxd.admin.client import AdminClient, socket_path
from muxd.admin.schemas import LoadModel, Status, UnloadModel
from muxd.admin.server import AdminServer
from muxd.errors import DaemonUnreachable, MuxdError, ShuttingDown

T = TypeVar("T")


def served(path: Path, ask: Callable[[], T], service: ScriptedService | None = None) -> T:
    """The result of ``ask``, called in a thread while the door is open."""

    async def main() -> T:
        server = AdminServer(service or ScriptedService(), path)
        await server.start()
        try:
            return await asyncio.to_thread(ask)
        finally:
            await server.close()

    result = asyncio.run(main())
    assert not path.exists()
    return result


def raw(path: Path, method: str, route: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("muxd")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(str(path))
        connection.request(method, route)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


def answering(path: Path, reply: bytes) -> threading.Thread:
    """A listener that answers one connection with ``reply`` and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def once() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(reply)

    thread = threading.Thread(target=once)
    thread.start()
    return thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "muxd.sock"


def test_every_read_arrives_as_it_was_given(path: Path) -> None:
    client = AdminClient(path)
    models, processes, status = served(path, lambda: (client.models(), client.ps(), client.status()))
    assert (models, processes) == (MODELS, PROCESSES)
    assert (status.pid, status.pool.free_blocks, status.requests.refused) == (os.getpid(), 98304, 4)
    assert client.daemon_version == __version__


def test_devices_arrive_with_what_is_not_known_left_out(path: Path) -> None:
    (row,) = served(path, AdminClient(path).devices)
    assert (row.name, row.health, row.power_watts) == ("GPU of the script", "lost: scripted", None)


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "/v0/status", 200),
        ("GET", "/v0/quota", 200),
        ("GET", "/v0/policy", 200),
        ("GET", "/v0/trace", 200),
        ("GET", "/v0/audit", 200),
        ("GET", "/v0/load", 405),
        ("GET", "/v0/why/chatcmpl-5-0", 200),
        ("GET", "/v0/why/", 404),
        ("POST", "/v0/trace", 405),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v0/models", 405),
        ("GET", "/v0/stop", 405),
    ],
)
def test_every_answer_is_json_and_carries_the_version(
    path: Path, method: str, route: str, status: int
) -> None:
    got, headers, body = served(path, lambda: raw(path, method, route))
    assert got == status
    assert headers["Muxd-Version"] == __version__
    decoded = msgspec.json.decode(body)
    if status != 200:
        assert route in decoded["error"]["message"]
    assert ("Allow" in headers) == (status == 405)


def test_stop_reaches_the_service_once_per_call_and_names_the_pid(path: Path) -> None:
    service = ScriptedService()
    status, _, body = served(path, lambda: raw(path, "POST", "/v0/stop"), service)
    assert (status, msgspec.json.decode(body)) == (202, {"pid": os.getpid()})
    assert service.stopped.is_set()


def test_a_refusal_keeps_its_sentence_and_a_defect_keeps_its_secret(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(ScriptedService):
        def status(self) -> Status:
            raise ShuttingDown("muxd is stopping")

        def ps(self) -> list[object]:  # type: ignore[override]
            raise ValueError("secret 123")

    client = AdminClient(path)

    def ask() -> list[str]:
        told = []
        for call in (client.status, client.ps):
            with pytest.raises(MuxdError) as caught:
                call()
            told.append(caught.value.message)
        return told

    refusal, defect = served(path, ask, Refusing())
    assert refusal == "muxd is stopping"
    assert "log" in defect
    assert "secret" not in defect
    assert "secret 123" in caplog.text  # the log has the traceback


def test_steps_arrive_one_by_one_and_a_refusal_in_their_midst_is_raised(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = AdminClient(path)

    def ask() -> None:
        stages = [step.stage for step in client.load(LoadModel("good"))]
        assert stages == ["reading", "weights", "ready"]
        assert [step.stage for step in client.unload(UnloadModel("good", now=True))] == ["unloaded"]
        for model, error, sentence, seen in (
            ("gone", MuxdError, "there is no model 'gone'", 0),
            ("broken", MuxdError, r"model\.safetensors: missing", 2),
            ("defect", MuxdError, "the daemon's log says more", 2),
            ("cut", DaemonUnreachable, "ended meanwhile", 2),
        ):
            steps = client.load(LoadModel(model))
            for _ in range(seen):
                next(steps)
            with pytest.raises(error, match=sentence):
                next(steps)

    served(path, ask)
    assert "secret 456" in caplog.text


def test_a_reader_that_leaves_in_the_midst_harms_nobody(path: Path) -> None:
    def ask() -> str:
        next(AdminClient(path).load(LoadModel("good")))
        return AdminClient(path).status().policy

    assert served(path, ask) == "mux"


def test_no_daemon_gets_a_sentence_that_says_what_to_start(path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match=r"no muxd is running at .*muxd serve --config .*MUXD_SOCKET"):
        AdminClient(path).status()


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"nonsense\r\n\r\n"]
)
def test_a_daemon_that_hangs_up_is_said_to_have_not_answered(path: Path, reply: bytes) -> None:
    thread = answering(path, reply)
    with pytest.raises(DaemonUnreachable, match="did not answer"):
        AdminClient(path).status()
    thread.join()


def test_an_answer_of_another_version_names_it(path: Path) -> None:
    body = b'{"version":9}'
    head = f"HTTP/1.1 200 OK\r\nMuxd-Version: 9.9\r\nContent-Length: {len(body)}\r\n\r\n"
    thread = answering(path, head.encode() + body)
    with pytest.raises(MuxdError, match=r"cannot read the answer of muxd 9\.9 to /v0/status.*same version"):
        AdminClient(path).status()
    thread.join()


def test_stop_returns_when_the_process_is_gone(path: Path) -> None:
    with scripted(path) as process:
        assert AdminClient(path).stop(wait=20) == process.pid
        assert process.poll() == 0
    assert not path.exists()


def test_stop_tells_when_the_daemon_stays(path: Path) -> None:
    with scripted(path, deaf=True) as process:
        with pytest.raises(TimeoutError, match=rf"pid {process.pid}\) is still running 0\.2 s"):
            AdminClient(path).stop(wait=0.2)
        assert process.poll() is None


def test_both_ends_look_in_the_same_place(tmp_path: Path) -> None:
    assert socket_path("/a/b.sock", {"XDG_RUNTIME_DIR": "/run/user/1"}) == Path("/a/b.sock")
    assert socket_path("", {"XDG_RUNTIME_DIR": "/run/user/1"}) == Path("/run/user/1/muxd.sock")
    assert socket_path("", {"MUXD_HOME": str(tmp_path)}) == tmp_path / "muxd.sock"
