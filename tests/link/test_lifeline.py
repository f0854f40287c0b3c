"""The end of a worker's socket: the daemon's doing, or the worker's own."""

import socket
import subprocess
import sys

import pytest

from muxd.link.exits import Exit

WATCHED = """
import socket, sys
from muxd.link import lifeline
sock = socket.socket(fileno=int(sys.argv[1]))
fd = sock.fileno()
if sys.argv[2] == "own":
    sock.close()
lifeline._watch(fd)
print("goes on")
"""


@pytest.mark.parametrize(("closed", "code"), [("own", Exit.OK), ("theirs", Exit.ORPHANED)])
def test_only_the_other_end_makes_an_orphan(closed: str, code: Exit) -> None:
    """A worker that ends closes its socket, perhaps before the thread that watches it has begun."""
    ours, theirs = socket.socketpair()
    with theirs:
        watcher = subprocess.Popen(
            [sys.executable, "-P", "-c", WATCHED, str(theirs.fileno()), closed],
            pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    if closed == "theirs":
        ours.close()
    said, _ = watcher.communicate(timeout=60)
    ours.close()
    assert (watcher.returncode, said) == (code, "goes on\n" if closed == "own" else "")
