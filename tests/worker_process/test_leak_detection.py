"""The net under every test has no holes: children, orphans, zombies and memfds are seen."""

import os
import signal
import subprocess

from support import leaks


def test_a_child_an_orphan_and_a_zombie_are_seen() -> None:
    before = leaks.running()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    shell = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, check=True, timeout=60
    )
    orphan = int(shell.stdout)
    assert leaks.processes(before) == {child.pid, orphan}
    assert "cat" in leaks.describe(child.pid)
    os.kill(orphan, signal.SIGKILL)
    child.kill()
    assert leaks.gone(orphan)
    assert leaks.gone(child.pid)
    assert leaks.is_zombie(child.pid)
    assert child.pid in leaks.processes(before)
    child.communicate()
    assert leaks.processes(before) == set()


def test_an_open_memfd_is_seen() -> None:
    before = leaks.memfds()
    fd = os.memfd_create("muxd-test")
    assert len(leaks.memfds()) == len(before) + 1
    os.close(fd)
    assert leaks.memfds() == before


def test_a_process_that_stays_is_not_gone() -> None:
    assert not leaks.gone(os.getpid(), 0.01)
