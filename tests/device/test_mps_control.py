"""The MPS control daemon over a stand-in that speaks its shell; clients are real processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.stand_ins import mps_control

from muxd.device import mps as room
from muxd.device.mps import ClientView, Health, Mps, MpsUnavailable, uncapped

pytestmark = pytest.mark.usefixtures("cuda_here")

CLIENT = """
import sys
from muxd.device.driver import Driver
from muxd.device.mps import client_view
driver = Driver()
driver.retain()
view = client_view(driver)
print(int(view.mps), view.sms, flush=True)
sys.stdin.read()
"""


class Client:
    """A process that initialises CUDA, says what it sees, and stays until it is closed."""

    def __init__(self, env: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        enabled, sms = self._process.stdout.readline().split()
        self.view, self.pid = ClientView(enabled == "1", int(sms)), self._process.pid

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


def test_it_is_started_once_and_found_again(mps: Mps, tmp_path: Path) -> None:
    assert not mps.answers()
    assert mps.start()
    assert not mps.start()
    again = Mps(mps.home, str(mps_control(tmp_path)))
    assert not again.start(), "a muxd that was restarted takes over the daemon that is there"
    assert (mps.pipe.stat().st_mode & 0o777, mps.health()) == (0o700, Health("idle"))
    again.stop()
    assert not mps.answers()
    mps.stop()


def test_what_a_killed_daemon_left_is_cleared(mps: Mps) -> None:
    mps.start()
    Path(mps.pipe, "control").unlink()
    Path(mps.pipe, "nvidia-cuda-mps-control.pid").write_text("999999")
    assert mps.start()
    assert not Path(mps.pipe, "nvidia-cuda-mps-control.pid").exists()
    mps.stop()


def test_a_default_percentage_somebody_set_is_taken_back(mps: Mps) -> None:
    mps.start()
    mps.ask("set_default_active_thread_percentage 30")
    mps.start()
    assert mps.ask("get_default_active_thread_percentage") == "100.0"
    mps.stop()


def test_the_daemon_does_not_inherit_what_is_meant_for_clients(
    mps: Mps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in refuses to start with either of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "20")
    assert mps.start()
    mps.stop()


def test_a_client_is_confirmed_with_its_cap(mps: Mps) -> None:
    mps.start()
    with Client(mps.client_env(50)) as half, Client(mps.client_env()) as whole:
        assert half.view == ClientView(True, 66)
        assert mps.clients() == {half.pid, whole.pid}
        assert mps.health().state == "active"
        assert mps.confirm(half.pid, half.view, 50, 132) == ""
        assert mps.confirm(whole.pid, whole.view, 0, 132) == ""
        assert "66 of 132 SMs although it has no cap" in mps.confirm(half.pid, half.view, 0, 132)
        assert mps.terminate(half.pid)
        assert mps.terminate(half.pid + 10**6), "no client, nothing to end"
    assert mps.clients() == set()
    mps.stop()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}, "runs without MPS: its connection to .*/pipe failed"),
        ({"FAKE_CUDA_CAP_IGNORED": "1"}, "132 of 132 SMs although it is capped at 50 %"),
        ({"FAKE_CUDA_UNLISTED": "1"}, "a client of MPS, but not of the daemon in"),
    ],
)
def test_a_client_that_is_not_attached_as_asked(mps: Mps, env: dict[str, str], said: str) -> None:
    mps.start()
    with Client({**mps.client_env(50), **env}) as client:
        assert re.search(said, mps.confirm(client.pid, client.view, 50, 132))
    mps.stop()


@pytest.mark.parametrize(
    ("mode", "within", "why", "said"),
    [
        ("refuse", 60, "refused", "insufficient permissions"),
        ("silent", 60, "timeout", "started nothing that answers within 1 s"),
        ("mute", 0.2, "timeout", r"no answer within 0\.2 s"),
    ],
)
def test_a_daemon_that_does_not_come_up(
    mps: Mps, mode: str, within: float, why: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS", mode)
    monkeypatch.setattr(room, "_START", 1.0)
    monkeypatch.setattr(mps, "_answer_within", within)
    with pytest.raises(MpsUnavailable, match=said) as raised:
        mps.start()
    assert raised.value.why == why
    assert mps.health() == Health("unreachable")
    assert not mps.terminate(1)


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_binary", lambda: "")
    with pytest.raises(MpsUnavailable, match="not installed") as raised:
        Mps(tmp_path).start()
    assert raised.value.why == "missing"
    monkeypatch.undo()
    not_a_program = tmp_path / "text"
    not_a_program.write_text("")
    with pytest.raises(MpsUnavailable, match="Permission denied"):
        Mps(tmp_path / "mps", str(not_a_program)).start()


def test_a_home_of_somebody_else_or_too_deep(tmp_path: Path) -> None:
    open_to_all = tmp_path / "mps"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(MpsUnavailable, match="writable by somebody else"):
        Mps(open_to_all, "/bin/true").start()
    with pytest.raises(MpsUnavailable, match="too long for a Unix socket"):
        Mps(tmp_path / ("d" * 100), "/bin/true").start()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(MpsUnavailable, match="somebody else"):
        Mps(tmp_path / "link", "/bin/true").start()


def test_a_fault_is_seen(mps: Mps, monkeypatch: pytest.MonkeyPatch) -> None:
    mps.start()
    with Client(mps.client_env()):
        monkeypatch.setenv("FAKE_MPS", "fault")
        assert mps.health() == Health("fault", 4242)
    (mps.logs / "server.log").write_text("".join(f"line {i}\n" for i in range(9)))
    assert mps.last_words(2) == ["line 7", "line 8"]
    monkeypatch.delenv("FAKE_MPS")
    mps.stop()


def test_a_client_that_cannot_be_ended_is_told(mps: Mps, monkeypatch: pytest.MonkeyPatch) -> None:
    mps.start()
    with Client(mps.client_env()) as client:
        monkeypatch.setenv("FAKE_MPS", "stubborn")
        assert not mps.terminate(client.pid)
    mps.stop()


def test_the_environment_of_a_client(mps: Mps) -> None:
    assert mps.client_env(100) == mps.client_env(0)
    assert mps.client_env(30, background=True)["CUDA_MPS_CLIENT_PRIORITY"] == "1"
    with pytest.raises(ValueError, match="a cap of 101 %"):
        mps.client_env(101)


@pytest.mark.parametrize(
    ("sms", "cap", "whole", "fine"),
    [(66, 50, 132, True), (64, 50, 132, True), (68, 50, 132, False), (132, 50, 132, False),
     (0, 50, 132, False), (2, 1, 132, True), (4, 1, 132, False), (132, 0, 132, True), (132, 100, 132, True),
     (130, 100, 132, False)],
)  # fmt: skip
def test_what_a_cap_means(sms: int, cap: int, whole: int, fine: bool) -> None:
    assert (uncapped(sms, cap, whole) == "") == fine


def test_a_server_that_has_just_ended_is_nobody(mps: Mps, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of in a sentence, and the shell's exit code is 0."""
    answers = {"get_server_list": "4242", "get_client_list 4242": "Server 4242 not found"}
    monkeypatch.setattr(mps, "ask", answers.__getitem__)
    assert mps.clients() == set()


def test_the_server_is_found_beside_the_daemon_though_path_is_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon executes its server by name."""
    program = tmp_path / "driver" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nread command\nnvidia-cuda-mps-server\n")
    server = program.with_name("nvidia-cuda-mps-server")
    server.write_text("#!/bin/sh\necho 25.0\n")
    for one in (program, server):
        one.chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Mps(tmp_path / "mps", str(program)).ask("get_default_active_thread_percentage") == "25.0"
