"""What gives way does, and nobody else."""

import os
import subprocess
import threading

import pytest

from muxd.device.behind import IdleThread, aside, put_back


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
