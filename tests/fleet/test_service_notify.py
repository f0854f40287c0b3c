"""Word to systemd, over a real datagram socket."""

import asyncio
import os
import socket
import time
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


def test_reloading_says_when_on_the_clock_of_systemd(manager: Manager) -> None:
    receiver, env = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notify.reloading(env=env)
    state, when = receiver.recv(4096).decode().split("\n")
    assert state == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_stopping_says_so(manager: Manager) -> None:
    receiver, env = manager
    assert notify.stopping(env=env)
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=stopping"


def test_one_who_does_not_read_holds_nobody_up(manager: Manager) -> None:
    _, env = manager
    told = [notify.notify("WATCHDOG=1", env=env, patience=0) for _ in range(2000)]
    assert (told[0], told[-1]) == (True, False)
    assert not notify.notify("READY=1", env=env, patience=0.01)


@pytest.mark.parametrize("where", [None, "", "not-absolute", "/nonexistent/socket"])
def test_nobody_there_is_no_error(where: str | None) -> None:
    assert not notify.notify("READY=1", env={} if where is None else {"NOTIFY_SOCKET": where})


def test_what_systemd_says_is_taken_out_of_the_environment_that_workers_inherit() -> None:
    env = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1", "PATH": "/bin"}
    assert notify.take(env) == {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}
    assert env == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("said", "period"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_signs_of_life_come_twice_in_the_time_that_systemd_waits(
    said: dict[str, str], period: float | None
) -> None:
    assert notify.watchdog_period(said) == period


def test_the_loop_gives_signs_of_life_until_it_is_told_to_stop(manager: Manager) -> None:
    receiver, env = manager

    async def scene() -> None:
        watch = asyncio.create_task(notify.keep_watch({**env, "WATCHDOG_USEC": "2000"}))
        for _ in range(3):
            assert await asyncio.to_thread(receiver.recv, 4096) == b"WATCHDOG=1"
        watch.cancel()
        await asyncio.wait([watch])
        await notify.keep_watch(env)  # nobody waits for any

    asyncio.run(scene())
