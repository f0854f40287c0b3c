"""Word to systemd, over a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from muxd.fleet import notify

Manager = tuple[socket.socket, dict[str, str]]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@muxd-{uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind(name.replace("@", "\0", 1))
        yield receiver, {"NOTIFY_SOCKET": name}


def test_ready_is_one_datagram_with_one_line_an_assignment(
    manager: Manager,
) -> None:
    receiver, env = manager
    assert notify.ready("2 models\nready", env=env)
    assert receiver.recv(4096).decode().split("\n") == [
        "READY=1",
        "STATUS=2 models ready",
        f"MAINPID={os.getpid()}",
    ]


def test_stopping_says_so(manager: Manager) -> None:
    receiver, env = manager
    assert notify.stopping(env=env)
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=stopping"


@pytest.mark.parametrize("where", [None, "", "not-absolute", "/nonexistent/socket"])
def test_nobody_there_is_no_error(where: str | None) -> None:
    assert not notify.notify("READY=1", env={} if where is None else {"NOTIFY_SOCKET": where})
