"""The daemon's limit of open files, and how much of it the HTTP door may have.

Where clients could take the last descriptor, a worker that dies could not be replaced, muxctl would not be
heard, and libzmq ends the whole process.
"""

import resource

_OWN = 96  # sockets and files of the daemon itself, muxctl's connections, text processes
_A_MODEL = 16  # weights, sockets and process of its workers, twice: a move or a restart has both


def raise_limit() -> int:
    """The soft limit becomes the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def for_clients(limit: int, models: int, wanted: int) -> int:
    """How many connections there may be: ``wanted``, or what is left beside ``models``, one that is cut as
    often as it has ranks. Of what is left at
    least a quarter of the limit: a door that opens for nobody is of no use."""
    left = max(1, limit // 4, limit - _OWN - _A_MODEL * max(8, 2 * models))
    return min(wanted, left)
