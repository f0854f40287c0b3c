"""On PYTHONPATH of a process: its wall clock is ahead of the true one by the seconds in the file that
MUXD_TEST_CLOCK names, and jumps when that changes."""

import os
import time


def jump(file: str) -> None:
    seconds, nanoseconds = time.time, time.time_ns

    def ahead() -> int:
        with open(file) as said:
            return int(said.read() or 0)

    time.time = lambda: seconds() + ahead()
    time.time_ns = lambda: nanoseconds() + 10**9 * ahead()


if (_file := os.environ.get("MUXD_TEST_CLOCK")) is not None:
    jump(_file)
