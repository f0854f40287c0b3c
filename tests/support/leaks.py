"""What a test may leave behind: nothing. Processes, descriptors and memfds, read from /proc.

Every process that a test starts inherits ``MUXD_TEST_TOKEN``, so that orphans are found too.
"""

import os
import select
import signal
import uuid
from pathlib import Path

TOKEN = f"MUXD_TEST_TOKEN={uuid.uuid4()}"


def mark_environment() -> None:
    """Once per session, before anything is started."""
    name, _, value = TOKEN.partition("=")
    os.environ[name] = value


def running() -> set[int]:
    """Every process of the machine: cheap to list, so tests remember it before they start."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def processes(before: set[int]) -> set[int]:
    """Processes that this session started after ``before`` was taken, orphans and zombies included.

    Python's own helper for shared memory is not counted: it lives as long as the session.
    """
    new = running() - before
    children = {
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in _read(path).split()
    }
    ours = {pid for pid in new if pid in children or _has_token(pid)}
    return {pid for pid in ours if b"resource_tracker" not in _read(Path(f"/proc/{pid}/cmdline"))}


def is_zombie(pid: int) -> bool:
    """Ended, but nobody has asked how."""
    return f"{pid} [Z]" in describe(pid)


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


def gone(pid: int, seconds: float) -> bool:
    """Whether the process ends within ``seconds``; needs not be our child. A zombie counts as ended."""
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


def kill(pids: set[int]) -> None:
    """Clean up after a failed test, so that the next one starts fresh."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
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
