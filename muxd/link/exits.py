"""Why a worker ended: exit codes as a vocabulary. Written by the worker, read by the supervisor.

Numbers beyond 1 follow sysexits.h.
"""

import signal
from enum import IntEnum

# A worker, a text process or the daemon then writes the stacks of its threads to standard error.
STACKS = signal.SIGUSR1
UNKNOWN = 256  # no process ends with it: whoever could have been told was gone


class Exit(IntEnum):
    """Exit codes of ``python -m muxd.worker``."""

    OK = 0  # was told to shut down
    FAILED = 1  # a batch, or start-up, raised: a restart may help
    BAD_SETUP = 65  # the daemon's set-up message or descriptors make no sense: a defect
    ORPHANED = 69  # the daemon is gone
    BAD_MESSAGE = 76  # the daemon's command could not be decoded: a defect
    REFUSED = 78  # this model cannot be served, ``Refused`` said why: do not restart

    @property
    def restart(self) -> bool:
        """Whether a new worker could do better."""
        return self in (Exit.FAILED, Exit.BAD_MESSAGE)


_MEANING = {
    Exit.OK: "ended as told",
    Exit.FAILED: "a batch or its start-up failed (see its log lines)",
    Exit.BAD_SETUP: "got a set-up it could not use",
    Exit.ORPHANED: "lost the daemon",
    Exit.BAD_MESSAGE: "got a command it could not read",
    Exit.REFUSED: "cannot serve this model",
}


def explain(returncode: int) -> str:
    """One clause for people from ``Popen.returncode`` (negative: killed by that signal)."""
    if returncode == UNKNOWN:
        return "ended, and nobody knows how: the process that had forked it was gone"
    if returncode >= 0:
        known = returncode in Exit.__members__.values()
        return _MEANING[Exit(returncode)] if known else f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"killed by {name}" + (" (perhaps out of memory)" if -returncode == signal.SIGKILL else "")
