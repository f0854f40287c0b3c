"""Fixtures for all rooms. Every test fails if it leaves a process or a memfd behind."""

import os
from collections import Counter
from collections.abc import Iterator

# Before anything loads torch: threads of the reference computations that spin while they wait would take the
# cores that daemons and workers under test need. Workers set their own.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest
from support import leaks

leaks.mark_environment()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process (child or orphan) and no memfd beyond those of wider fixtures."""
    running, memfds = leaks.running(), leaks.memfds()
    yield
    # A process that is ending gets a moment; one that was never reaped stays listed and fails.
    left = {pid for pid in leaks.processes(running) if not leaks.gone(pid, 2) or leaks.is_zombie(pid)}
    told = [leaks.describe(pid) for pid in left]
    leaks.kill(left)
    assert not told, f"processes left behind: {told}"
    assert not Counter(leaks.memfds()) - Counter(memfds), "memfds left open"


@pytest.fixture
def no_descriptor_leak() -> Iterator[None]:
    """No open descriptor more than before. Ask for it first, so that it is checked last."""
    before = leaks.descriptors()
    yield
    after = leaks.descriptors()
    assert {fd: name for fd, name in after.items() if fd not in before} == {}
