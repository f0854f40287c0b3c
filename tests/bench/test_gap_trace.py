"""The trace of a load beside a stream: who ran and who waited is read off the system, and a long gap is put
down to whoever had more of either than usual."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BUSY = "print(1, flush=True)\nwhile True: pass"


@pytest.fixture
def gap_trace(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gap_trace

    return gap_trace


def gap(trace: Any, begin: float, ms: float, **times: tuple[float, float]) -> Any:
    named = {getattr(trace, role): spent for role, spent in times.items()}
    return trace.Gap(begin, begin + ms / 1e3, named)


def test_what_a_process_computes_is_read_off_the_system(gap_trace: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            threads = gap_trace.Threads(busy.pid, "m")
            ran = dict.fromkeys((gap_trace.LOOP, gap_trace.CLIENT), 0.0)
            while min(ran.values()) < 20:  # ms
                times = threads.took()
                ran = {role: ms + times.get(role, (0.0, 0.0))[0] for role, ms in ran.items()}
        finally:
            busy.kill()
    times = threads.took()
    assert gap_trace.LOOP not in times, "it has ended"
    before = len(os.listdir("/proc/self/fd"))
    threads.close()
    assert len(os.listdir("/proc/self/fd")) < before


TITLED = """
import subprocess, sys, threading
from muxd.link.lifeline import set_title
titles, below = sys.argv[1:], []
if len(titles) == 1:
    set_title(titles[0])
else:
    below = [subprocess.Popen([sys.executable, __file__, one], stdin=0, stdout=-1) for one in titles]
    for one in below:
        one.stdout.readline()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(1, flush=True)
sys.stdin.readline()
for one in below:
    one.wait()
"""


def test_a_process_is_known_by_its_title_and_threads_of_the_daemon_are_not_its_loop(
    gap_trace: Any, tmp_path: Path
) -> None:
    script = tmp_path / "titled.py"
    script.write_text(TITLED)
    command = [sys.executable, str(script), "text", "a-stream-of-a-long-name", "weights", "zygote", "b"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        daemon.stdout.readline()
        threads = gap_trace.Threads(daemon.pid, "a-stream-of-a-long-name")
        roles = set(threads.took())
        threads.close()
        daemon.stdin.close()
    told = {gap_trace.LOOP, gap_trace.THREADS, gap_trace.STREAM, gap_trace.CLIENT}
    assert roles == told | {"text", "weights", "zygote", "the new worker"}, "with one thread each"


def test_a_long_gap_is_put_down_to_who_had_more_than_usual(gap_trace: Any) -> None:
    quiet = [gap(gap_trace, float(at), 16, STREAM=(28, 0.1), LOOP=(1, 0), CLIENT=(1, 0)) for at in range(5)]
    usual = gap_trace.usual_of(quiet)
    assert usual.ms == pytest.approx(16)
    told = {
        "its worker waited for a core": {"STREAM": (28, 20), "LOOP": (1, 5)},
        "the daemon's loop waited for a core": {"STREAM": (28, 2), "LOOP": (1, 15)},
        "who reads the stream waited for a core": {"CLIENT": (1, 17)},
        "its worker computed longer": {"STREAM": (60, 2)},
        "the daemon's loop computed": {"STREAM": (28, 0), "LOOP": (20, 0)},
        "threads of the daemon computed": {"THREADS": (14, 0), "LOOP": (2, 1)},
        gap_trace.NOBODY: {"STREAM": (28, 1), "LOOP": (1, 0)},
    }
    for why, times in told.items():
        assert gap_trace.cause(gap(gap_trace, 0.0, 34, **times), usual) == why
    with pytest.raises(ValueError, match="no gap was quiet"):
        gap_trace.usual_of([])


def test_the_report_is_by_what_went_on_when_a_gap_began(gap_trace: Any) -> None:
    trace = gap_trace.Trace(os.getpid(), "m")
    began = time.perf_counter()
    for number in range(20):
        trace.token(began + 0.016 * number)
    trace.token(began + 0.016 * 19 + 0.1)
    last = began + 0.016 * 19
    found = trace.report({"quiet": [(began, last - 0.001)], "load": [(last, last + 1)], "wake": []}, "quiet")
    assert found["usual gap, ms"] == 16.0
    assert (found["quiet"]["gaps"], found["quiet"]["long"]) == (19, 0)
    assert (found["load"]["gaps"], found["load"]["long"], found["load"]["p99"]) == (1, 1, 100.0)
    assert sum(found["load"]["because"].values()) == 1
    assert found["wake"] == {"gaps": 0, "long": 0}
