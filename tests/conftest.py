"""Fixtures for all rooms. Every test fails if it leaves a process or a memfd behind."""

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator

# Before anything loads torch: threads that spin while they wait, of reference computations and of workers
# under test, would take the cores that the tests beside them need.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support import interrupts, leaks
from support.examples import examples

collect_ignore = ["clients"]  # they have an environment of their own: make test-clients

leaks.mark_environment()
with contextlib.suppress(ImportError):  # a GPU host that can install nothing may lack it
    from hypothesis import settings

    # How long an example takes says how busy the machine is.
    settings.register_profile("muxd", deadline=None, max_examples=examples(100))
    settings.load_profile("muxd")

_CORES = os.sched_getaffinity(0)
_BOTH = "cores"  # the group of tests that pin cores or time them
_LONGEST = ("e2e", "cost", "fleet", "worker_process", "doctor")


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist runs tests as a session without it does."""
    spread = bool(getattr(config.option, "tx", None)) and not hasattr(config, "workerinput")
    interrupts.install(workers=spread)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays, a million objects: garbage is neither looked for meanwhile, nor
    among them later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` the tests of a file at one place stay together: they share what they start.
    Those that pin cores follow each other, and the longest come first, so that no worker waits at the end."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: [item.path.parent.name == room for room in _LONGEST], reverse=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Some versions of pytest and pytest-xdist do not know each other, and spread groups without a word."""
    grouped = getattr(session.config.option, "loadgroup", False)
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not keep groups together with this version of pytest")


def _group(item: pytest.Item) -> str:
    where = item.callspec.params.get("where", "") if hasattr(item, "callspec") else ""
    if where == "cpu" and "two_devices" in getattr(item, "fixturenames", ()):
        return _BOTH
    return f"{item.path.stem} {where}".strip()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    interrupts.install()
    group = item.get_closest_marker("xdist_group")
    pins = group is not None and group.args[:1] == (_BOTH,)
    os.sched_setaffinity(0, _CORES if pins else _own_cores())


def _own_cores() -> set[int]:
    """Each process of pytest-xdist, and all that it starts, has cores for itself: daemons that share theirs
    wait for each other's threads, which makes both many times slower."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return set(sorted(_CORES)[number::processes]) or _CORES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many tests of which room have run: a target that loses some should not pass unnoticed."""
    ran = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    rooms = Counter(report.nodeid.split("/")[1] for report in ran if report.when == "call")
    told = ", ".join(f"{room} {count}" for room, count in sorted(rooms.items()))
    if rooms:
        terminalreporter.write_line(f"{rooms.total()} tests ran: {told}")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process (child or orphan) and no memfd beyond those of wider fixtures."""
    running, memfds = leaks.running(), leaks.memfds()
    yield
    # A process that is ending gets its time; one that was never reaped stays listed and fails.
    left = {pid for pid in leaks.processes(running) if not leaks.gone(pid, 20) or leaks.is_zombie(pid, 20)}
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
