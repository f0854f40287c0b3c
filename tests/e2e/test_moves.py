"""A model moves between two devices while clients stream: nothing is lost, doubled or left behind."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace
from support import leaks
from support.live import LiveDaemon
from support.shared import Shared
from support.two_units import Stream, ask, models, row, whole
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import MoveModel, QuotaChange
from muxd.errors import MuxdError
from muxd.fleet.steps import Step

pytestmark = pytest.mark.usefixtures("two_devices")

LONG = 6_000  # tokens: many times longer than a worker needs to start


def config(where: Where, root: Path, server: str = "", limit: str = "") -> str:
    pins = {"a": where.first, "b": where.second}
    made = models(where, root, pins, "max_running = 2\n", positions=16384)
    return f"[server]\n{server}\n{where.two_devices(second=limit)}{made}"


@pytest.fixture(scope="module")
def shared(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("moves")
    with Shared(where, config(where, root), root) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


def begin(daemon: LiveDaemon, device: str, until: str = "starting") -> Iterator[Step]:
    """The steps after ``until``."""
    steps = daemon.admin.move(MoveModel("a", device))
    for step in steps:
        if step.stage == until:
            break
    return steps


def move(daemon: LiveDaemon, device: str) -> None:
    assert list(daemon.admin.move(MoveModel("a", device)))[-1].stage == "moved"


@on(*EVERYWHERE)
def test_streams_drain_queued_requests_go_over_and_all_tokens_are_the_same(
    where: Where, daemon: LiveDaemon
) -> None:
    served = daemon.status().requests.served
    alone = ask(daemon, "a", 64)
    old = daemon.workers()["a"]
    running = [Stream(daemon, "a", LONG) for _ in range(2)]
    for one in running:
        assert one.first.wait(60)
    queued = [Stream(daemon, "a", 64) for _ in range(3)]
    while daemon.status().requests.waiting < 3:  # a worker starts in no time: they must be there before
        pass
    steps = begin(daemon, where.second)
    for step in steps:
        if step.stage == "draining":
            break
    assert step.total >= 2
    assert row(daemon, "a").device == where.second
    assert row(daemon, "a").detail == f"leaving {where.first}"
    daemon.admin.set_quota(QuotaChange("a", min="1M"))  # at its new place
    for one in queued:
        one.join()
        assert (one.tokens, one.finish, one.error) == (alone, "length", "")
        (times,) = daemon.admin.why(one.id)
        assert [stay.device for stay in times.stays] == [where.first, where.second]
        assert times.stays[1].decode == pytest.approx(times.decode)
        assert sum(stay.seconds for stay in times.stays) == pytest.approx(times.total)
    assert not any(one.over for one in running), "the streams were too short to tell"
    assert list(steps)[-1].stage == "moved"
    for one in running:
        one.join()
        assert (len(one.tokens), one.finish, one.error) == (LONG, "length", "")
        assert one.tokens[:64] == alone
    assert leaks.gone(old)
    assert running[0].tokens == running[1].tokens
    assert ask(daemon, "a", 64) == alone
    assert [(one.model, one.device) for one in daemon.admin.quota()] == [
        ("b", where.second),
        ("a", where.second),
    ]
    part = 100 if where.name == "cpu" else 50  # one core has no half
    assert {one.name: one.share for one in daemon.admin.models()} == {"a": part, "b": part}
    assert daemon.status().requests.served == served + 7
    where.check_regions(daemon.process.pid, "pool", "pool", "weights", "weights")
    assert whole(daemon)
    told = [(one.kind, one.device, one.detail) for one in daemon.admin.events("a")]
    assert told[-4:] == [
        ("moving", where.first, f"{where.first} to {where.second}: by an operator"),
        ("worker ready", where.second, ""),
        ("quota", where.second, "min 128, max 2048 blocks, weight 1"),
        ("moved", where.second, ""),
    ]
    with pytest.raises(MuxdError, match=f"a is on {where.second} already"):
        move(daemon, where.second)


@on("cpu")
def test_back_and_forth_under_load(where: Where, daemon: LiveDaemon) -> None:
    before = daemon.status().requests
    alone = {model: ask(daemon, model, 40) for model in "ab"}
    over = threading.Event()

    def client(model: str) -> int:
        asked = 0
        while not over.is_set():
            assert ask(daemon, model, 40) == alone[model]
            asked += 1
        return asked

    with ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(client, model) for model in "aaaabb"]
        try:
            for device in (where.second, where.first, where.second):
                move(daemon, device)
        finally:
            over.set()
        total = sum(one.result() for one in asked)
    requests = daemon.status().requests
    assert requests == replace(before, served=before.served + total + 2)
    assert sorted(daemon.workers()) == ["a", "b"]
    where.check_regions(daemon.process.pid, "pool", "pool", "weights", "weights")
    assert whole(daemon)


@on(*EVERYWHERE)
def test_a_target_that_cannot_hold_it_leaves_it_where_it_was(where: Where, tmp_path: Path) -> None:
    with where.live(config(where, tmp_path, limit='memory = "16900K"\n'), tmp_path) as daemon:
        alone, worker = ask(daemon, "a"), daemon.workers()["a"]
        before = leaks.memfds(daemon.process.pid)
        with pytest.raises(MuxdError, match=r"not enough memory for weights: .* left of device.memory"):
            move(daemon, where.second)
        daemon.admin.set_quota(QuotaChange("a", min="10M"))
        daemon.admin.set_quota(QuotaChange("b", min="10M"))
        with pytest.raises(MuxdError, match=r"quota.min"):
            move(daemon, where.second)
        with pytest.raises(
            MuxdError, match=f"there is no device 'cuda:7'; there are: {where.first}, {where.second}"
        ):
            move(daemon, "cuda:7")
        assert (row(daemon, "a").device, row(daemon, "a").state, row(daemon, "a").detail) == (
            where.first, "ready", "",
        )  # fmt: skip
        assert (ask(daemon, "a"), daemon.workers()["a"]) == (alone, worker)
        failed = [one.detail for one in daemon.admin.events("a") if one.kind == "move failed"]
        assert ["device.memory" in failed[0], "quota.min" in failed[1]] == [True, True]
        assert leaks.memfds(daemon.process.pid) == before
        assert whole(daemon)


@pytest.mark.slow
@on(*EVERYWHERE)
def test_workers_killed_in_the_midst_of_a_move(where: Where, daemon: LiveDaemon) -> None:
    before = daemon.status().requests
    alone = ask(daemon, "a")
    steps = begin(daemon, where.second)
    while not (new := [p.pid for p in daemon.admin.ps() if (p.model, p.device) == ("a", where.second)]):
        continue
    os.kill(new[0], signal.SIGKILL)  # it is started again
    running = Stream(daemon, "a", LONG)
    assert running.first.wait(60)
    for step in steps:
        if step.stage == "draining":
            break
    old = next(p for p in daemon.admin.ps() if (p.model, p.device) == ("a", where.first))
    os.kill(old.pid, signal.SIGKILL)
    beyond = len(running.tokens) + 64  # what comes of two workers
    assert list(steps)[-1].stage == "moved"
    assert (running.join().error, running.finish) == ("", "length")
    assert running.tokens[:16] == alone
    assert ask(daemon, "a", beyond) == running.tokens[:beyond]
    requests = daemon.status().requests
    assert (requests.served, requests.failed) == (before.served + 3, before.failed)
    assert (row(daemon, "a").device, sorted(daemon.workers())) == (where.second, ["a", "b"])
    assert whole(daemon)


@on("cpu")
@pytest.mark.parametrize("what", [pytest.param("starting", marks=pytest.mark.slow), "draining"])
def test_sigterm_in_the_midst_of_a_move_leaves_nothing(where: Where, tmp_path: Path, what: str) -> None:
    with where.live(config(where, tmp_path, "shutdown_grace = 0.5"), tmp_path) as daemon:
        running = Stream(daemon, "a", LONG)
        assert running.first.wait(60)
        begin(daemon, where.second, what)
        pids = [daemon.process.pid, *(process.pid for process in daemon.admin.ps())]
        assert daemon.terminate() == 0, daemon.log
        assert running.join().finish or "shutting down" in running.error
        assert all(leaks.gone(pid) for pid in pids)
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.log


@pytest.mark.slow
@on("cpu")
def test_a_shutdown_with_grace_serves_who_goes_over_meanwhile(where: Where, tmp_path: Path) -> None:
    """The switch comes after SIGTERM: the unit that was empty then gets requests, and is waited for."""
    with where.live(config(where, tmp_path, "shutdown_grace = 100.0"), tmp_path) as daemon:
        alone = ask(daemon, "a", 64)
        running = [Stream(daemon, "a", LONG) for _ in range(2)]
        for one in running:
            assert one.first.wait(60)
        queued = [Stream(daemon, "a", 64) for _ in range(3)]
        while row(daemon, "a").waiting < 3:
            continue
        with daemon.no_worker_starts():
            begin(daemon, where.second)
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.terminate(seconds=110) == 0, daemon.log
        for one in queued:
            assert (one.join().tokens, one.finish, one.error) == (alone, "length", "")
        for one in running:
            assert (len(one.join().tokens), one.finish) == (LONG, "length")
        assert "Traceback" not in daemon.log
