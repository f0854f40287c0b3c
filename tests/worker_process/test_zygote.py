"""The process that forks workers: safe to fork, tells how its workers ended, and may be lost."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from support import leaks
from support.spawned_worker import Daemon, Forked
from support.tiny import tiny_llama

from muxd.device.cpu import worker_env
from muxd.fleet.process import WorkerProcess
from muxd.fleet.zygote import Zygote
from muxd.link.exits import UNKNOWN, Exit, explain
from muxd.messages import Ready

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")
T = TypeVar("T")


@pytest.fixture
def own() -> Iterator[Zygote]:
    """One that the test may end."""
    zygote = Zygote()
    yield zygote
    zygote.close()


def test_it_has_one_thread_and_is_the_parent_of_what_it_forks(zygote: Zygote) -> None:
    worker = Forked(zygote)
    assert os.listdir(f"/proc/{zygote.pid}/task") == [str(zygote.pid)]
    assert Path(f"/proc/{zygote.pid}/comm").read_text() == "muxd:zygote\n"
    assert Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(zygote.pid)
    worker.close()


# Asks a zygote that has grown a thread, in one process.
THREADED = """
import socket, threading
from muxd.link import fds
from muxd.messages import Fork, FromZygote
from muxd.worker import zygote
threading.Thread(target=threading.Event().wait, daemon=True).start()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
fds.send(ours, Fork({}), [ours.fileno()])
ours.shutdown(socket.SHUT_WR)
assert zygote._serve(theirs) is None
print(fds.receive(ours, FromZygote)[0].reason)
"""


def test_it_does_not_fork_with_a_second_thread_whose_locks_would_stay_locked() -> None:
    said = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, timeout=120)
    assert said.stdout == "the zygote has 2 threads: a fork would not be safe\n", said.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_that_ended_a_worker_is_told(zygote: Zygote, number: signal.Signals) -> None:
    worker = Forked(zygote)
    worker.send_signal(number)
    assert worker.ended()[0] == -number
    worker.close()


def test_each_of_many_is_told_apart(zygote: Zygote) -> None:
    workers = [Forked(zygote) for _ in range(12)]
    for n, worker in enumerate(workers):
        if n % 2:
            worker.send_signal(signal.SIGKILL)
        else:
            worker.sock.close()
    assert [worker.ended()[0] for worker in workers] == [Exit.ORPHANED, -signal.SIGKILL] * 6
    for worker in workers:
        worker.close()


def test_signals_that_ask_for_nothing_it_has_do_not_end_it(zygote: Zygote) -> None:
    before = Forked(zygote)
    pid = zygote.pid
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    after = Forked(zygote)
    assert zygote.pid == pid
    for worker in (before, after):
        worker.close()


def test_workers_live_on_when_it_ends_and_the_next_is_forked_by_another(own: Zygote) -> None:
    worker, first = Forked(own), own.pid
    os.kill(first, signal.SIGKILL)
    assert leaks.gone(first)
    next_one = Forked(own)
    assert own.pid not in (0, first)
    assert worker.runs
    worker.sock.close()
    assert worker.ended()[0] == UNKNOWN
    assert "nobody knows how" in explain(UNKNOWN)
    worker.close()
    next_one.close()


def test_one_that_ends_before_it_has_answered_is_replaced(own: Zygote) -> None:
    own.start()
    os.kill(own.pid, signal.SIGKILL)  # it is still importing
    Forked(own).close()


def test_a_refusal_of_the_system_is_told_and_the_next_fork_works(own: Zygote) -> None:
    worker = Forked(own)
    Forked(own).close()  # once it has answered how that one ended, it holds nothing of either
    used = set(map(int, os.listdir(f"/proc/{own.pid}/fd")))
    _, second = islice((n for n in count() if n not in used), 2)  # the first is for the socket
    before = resource.prlimit(own.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own.pid, resource.RLIMIT_NOFILE, (second, before[1]))
    with pytest.raises(OSError, match="Too many open files"):
        Forked(own)
    resource.prlimit(own.pid, resource.RLIMIT_NOFILE, before)
    Forked(own).close()
    worker.close()


# A daemon that forks a worker, says who they are, and waits to be killed.
DAEMON = """
import os, signal, socket
from muxd.fleet.zygote import Zygote
zygote, (ours, theirs) = Zygote(), socket.socketpair()
child = zygote.fork({}, theirs)
os.write(1, f"{zygote.pid} {child.pid}\\n".encode())
signal.pause()
"""


def test_sigkill_of_the_daemon_ends_it_and_its_workers() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    zygote, worker = map(int, daemon.stdout.readline().split())
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    assert leaks.gone(zygote)
    assert leaks.gone(worker)


Act = Callable[[WorkerProcess], Awaitable[T]]


def ready(zygote: Zygote, folder: Path, act: Act[T], cpus: tuple[int, ...] = ()) -> T:
    """What ``act`` returns of a forked worker of a tiny model that is ready."""

    async def scene() -> T:
        daemon = Daemon(folder)
        setup = msgspec.structs.replace(daemon.setup, cpus=cpus)
        worker = await WorkerProcess.spawn(zygote, setup, daemon.fds[:2], worker_env(1), lambda pid: None)
        try:
            assert isinstance(await daemon.next(), Ready)
            return await act(worker)
        finally:
            await worker.kill()
            await worker.wait()
            daemon.close()

    return asyncio.run(scene())


def cpus_of_threads(pid: int) -> dict[str, set[int]]:
    """By their names."""
    tasks = Path(f"/proc/{pid}/task")
    return {(task / "comm").read_text(): os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()}


def test_cpus_are_those_it_was_told_and_one_core_starts_no_threads_that_compute(
    zygote: Zygote, tmp_path: Path
) -> None:
    cpu = max(os.sched_getaffinity(0))

    async def act(worker: WorkerProcess) -> dict[str, set[int]]:
        return cpus_of_threads(worker.pid)

    found = ready(zygote, tiny_llama(tmp_path), act, cpus=(cpu,))
    assert found["muxd:tiny\n"] == {cpu}
    assert not any("omp" in name.lower() for name in found)


def test_a_worker_that_does_not_listen_is_killed_after_its_grace(zygote: Zygote, tmp_path: Path) -> None:
    async def act(worker: WorkerProcess) -> int:
        os.kill(worker.pid, signal.SIGSTOP)
        await worker.stop(0.1)
        return await worker.wait()

    assert ready(zygote, tiny_llama(tmp_path), act) == -signal.SIGKILL


def test_several_may_wait_for_the_same_end_and_one_that_gives_up_takes_it_from_nobody(
    zygote: Zygote, tmp_path: Path
) -> None:
    async def act(worker: WorkerProcess) -> list[int]:
        impatient = asyncio.create_task(worker.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        waits = [asyncio.create_task(worker.wait()) for _ in range(3)]
        await worker.kill()
        return list(await asyncio.gather(*waits))

    assert ready(zygote, tiny_llama(tmp_path), act) == [-signal.SIGKILL] * 3
