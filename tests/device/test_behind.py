"""What gives way does, and nobody else."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from muxd.device import behind
from muxd.device.behind import IdleThread, aside, may_come_back, only_idle, put_back


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def idle() -> bool:
    return os.sched_getscheduler(0) == os.SCHED_IDLE


def test_what_is_done_aside_is_behind_everybody_and_its_caller_is_not() -> None:
    own = nice()
    assert aside(nice) == min(19, own + 10)
    assert nice() == own


def test_a_process_that_was_just_started_is_behind_and_one_that_has_ended_is_nobodys_fault() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        put_back(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, nice() + 10)
    put_back(process.pid)


def test_what_goes_wrong_aside_is_the_callers() -> None:
    def broken() -> None:
        raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        aside(broken)


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_idleness_ends_with_its_patience(patience: float) -> None:
    """Then a piece runs where it would without."""
    idle_thread = IdleThread(patience)
    assert idle_thread.run(idle) == (patience > 0)
    assert not idle()
    idle_thread.close()


# Two threads, and a third that starts when a line comes.
THREADS = """
import sys, threading
over = threading.Event()
threading.Thread(target=over.wait, daemon=True).start()
print(1, flush=True)
sys.stdin.readline()
threading.Thread(target=over.wait, daemon=True).start()
print(2, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def threads() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        step(process)
        yield process
        process.kill()


def step(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.readline()


def policies(process: subprocess.Popen[bytes]) -> list[int]:
    return [os.sched_getscheduler(int(name)) for name in os.listdir(f"/proc/{process.pid}/task")]


def test_a_process_is_only_idle_for_a_while_with_the_threads_that_it_starts(
    threads: subprocess.Popen[bytes],
) -> None:
    """And where it could never come back it is let alone."""
    meanwhile = os.SCHED_IDLE if may_come_back() else os.SCHED_OTHER

    async def scene() -> None:
        with only_idle([threads.pid], patience=1e6):
            assert policies(threads) == [meanwhile] * 2
            assert threads.stdin is not None
            threads.stdin.write(b"\n")
            threads.stdin.flush()
            step(threads)
            assert policies(threads) == [meanwhile] * 3
        assert policies(threads) == [os.SCHED_OTHER] * 3

    asyncio.run(scene())


def test_patience_ends_and_so_may_the_process(threads: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        with only_idle([threads.pid], patience=0.0):
            later = asyncio.Event()
            asyncio.get_running_loop().call_later(0.0, later.set)
            await later.wait()
            assert policies(threads) == [os.SCHED_OTHER] * 2
            threads.kill()
            threads.wait()
        with only_idle([threads.pid]):
            pass

    asyncio.run(scene())


def test_who_may_not_come_back_never_goes(
    threads: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "may_come_back", lambda: False)

    async def scene() -> None:
        with only_idle([threads.pid]):
            assert policies(threads) == [os.SCHED_OTHER] * 2

    asyncio.run(scene())
