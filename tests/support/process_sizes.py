"""What a process takes of its host, read from /proc: memory, descriptors, threads, memfds."""

import os
from pathlib import Path

from msgspec import Struct

from support import leaks


class Sizes(Struct, frozen=True):
    """``pss`` (its part of what it shares, too) and ``rss`` in bytes; the others are counts."""

    rss: float
    pss: float
    fds: float
    threads: float
    memfds: float


FIELDS = Sizes.__struct_fields__


def measure(pid: int) -> Sizes | None:
    """None where the process has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        open_files = leaks.descriptors(pid).values()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    if "Rss:" not in kilobytes:  # it ends just now
        return None
    memfds = sum(name.startswith("/memfd:") for name in open_files)
    return Sizes(1024 * kilobytes["Rss:"], 1024 * kilobytes["Pss:"], len(open_files), threads, memfds)


def mean(sizes: list[Sizes]) -> Sizes:
    """Of one process, on average. ``sizes`` is not empty."""
    return Sizes(*(sum(getattr(one, field) for one in sizes) / len(sizes) for field in FIELDS))
