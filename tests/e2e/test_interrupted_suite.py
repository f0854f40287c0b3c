"""Whoever stops the tests gets the machine back: a run that is told to end does, and leaves nothing."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import leaks
from support.interrupted import TOLD

ROOT = Path(__file__).parents[2]
CASE = ROOT / "tests" / "support" / "interrupted.py"
pytestmark = pytest.mark.xdist_group("cores")  # a daemon of two devices needs both
SPREAD = ["-n", "1", "--dist", "loadgroup"]

needs_xdist = pytest.mark.skipif(
    importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed"
)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("test", "options"),
    [
        ("test_daemon", []),
        pytest.param("test_in_process", [], marks=pytest.mark.slow),
        pytest.param("test_daemon", SPREAD, marks=[pytest.mark.slow, needs_xdist]),
    ],
    ids=["a daemon", "a daemon in the process", "a daemon of a worker of xdist"],
)
def test_it_ends_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, test: str, options: list[str]
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with (tmp_path / "log").open("w") as log:
        suite = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", f"{CASE}::{test}", *options],
            env={**env, TOLD: str(tmp_path)}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        while not (tmp_path / "begun").exists():
            assert suite.poll() is None, (tmp_path / "log").read_text()
        family = of_session(suite.pid)
        assert len(family) > 1
        if number is signal.SIGINT:
            os.killpg(suite.pid, number)  # as a terminal does: all of them
        else:
            suite.send_signal(number)
        assert suite.wait(120) == pytest.ExitCode.INTERRUPTED, (tmp_path / "log").read_text()
        assert (tmp_path / "finalised").exists()
        # One that was being started, and is in no list of the daemon's yet, finds its lifeline cut.
        left = family
        while left:
            assert all(leaks.gone(pid) for pid in left)
            left = of_session(suite.pid)
    finally:
        leaks.kill(of_session(suite.pid))
        suite.wait()


def of_session(leader: int) -> set[int]:
    """Processes of the leader's session that have not ended, itself included."""
    return {pid for pid in leaks.running() if leaks.session(pid) == leader and not leaks.is_zombie(pid)}
