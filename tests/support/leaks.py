"""What a test may leave behind: nothing. Processes, descriptors and memfds, read from /proc.

Every process that a test starts inherits ``MUXD_TEST_TOKEN``, so that orphans are found too.
"""

import os
import select
import signal
import time
import uuid
from pathlib import Path

TOKEN = f"MUXD_TEST_TOKEN={uuid.uuid4()}"
OURSELVES = os.getpid()
_kept: set[int] = set()  # of daemons that outlive the test, which have answered for them


def mark_environment() -> None:
    """Once per session and per worker of pytest-xdist, before anything is started: each looks at its own."""
    name, _, value = TOKEN.partition("=")
    os.environ[name] = value


def running() -> set[int]:
    """Every process of the machine: cheap to list, so tests remember it before they start."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def processes(before: set[int]) -> set[int]:
    """Processes that this session started after ``before`` was taken, orphans and zombies included.

    Python's own helper for shared memory is not counted: it lives as long as the session.
    """
    return _ours(running() - before - _kept)


def _ours(pids: set[int]) -> set[int]:
    own = children()
    ours = {pid for pid in pids - {OURSELVES} if pid in own or _has_token(pid)}
    return {pid for pid in ours if b"resource_tracker" not in _read(Path(f"/proc/{pid}/cmdline"))}


def children() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in _read(path).split()}


def end_all() -> None:
    """Kill whatever this session has started, and what that starts meanwhile. Waits for nobody: a worker of
    pytest-xdist has ten seconds to clean up in, and the zombies of a machine may be asked for by no one."""
    for _ in range(5):
        if not (left := {pid for pid in _ours(running()) if not is_zombie(pid, 0)}):
            return
        kill(left)


def keep(pids: set[int]) -> None:
    """These belong to a daemon that several tests use, and were looked at when it was put back."""
    _kept.update(pids)


def parent(pid: int) -> int:
    """Process id; 0 where the process has ended."""
    return _status(pid, 1)


def session(pid: int) -> int:
    """Process id of the leader; 0 where the process has ended."""
    return _status(pid, 3)


def _status(pid: int, field: int) -> int:
    """Fields of /proc/PID/stat, from the one after the name on."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return int(fields[field]) if fields else 0


def is_zombie(pid: int, seconds: float = 2) -> bool:
    """Ended, and nobody asks how within ``seconds``: the parent of one that has just ended needs a moment."""
    end = time.monotonic() + seconds
    while f"{pid} [Z]" in describe(pid):
        if time.monotonic() > end:
            return True
        time.sleep(0.01)  # no event tells that somebody has asked
    return False


def _has_token(pid: int) -> bool:
    return TOKEN.encode() in _read(Path(f"/proc/{pid}/environ")).split(b"\0")


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Open descriptors of a process and what they point to."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:  # the one used for listing
            continue
    return found


def memfds(pid: int | str = "self") -> list[str]:
    """Names of the memfds that a process holds open: muxd's, and the memory of the stand-in for a GPU."""
    ours = ("memfd:muxd", "memfd:stand-in-gpu")
    return sorted(name for name in descriptors(pid).values() if any(one in name for one in ours))


def gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether the process ends within ``seconds``, by default what one that is about to end may take where
    the machine is busy; needs not be our child. A zombie counts as ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def kill(pids: set[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Clean up after a failed test, so that the next one starts fresh."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def describe(pid: int) -> str:
    """Command line and state of a leaked process, for the failure message."""
    status = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    command = _read(Path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ").decode(errors="replace")
    return f"{pid} [{status[0].decode() if status else 'gone'}] {command[:120]}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
