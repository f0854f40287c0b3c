"""Taking the admin socket's path: one daemon per path, 0600 from its first moment. Used by admin.server.

Also the peer's process id, which both ends need: the server to name who holds the path, muxctl to wait for
the daemon's end.
"""

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muxd.errors import ConfigError

_LONGEST = 107  # bytes of sockaddr_un.sun_path less its closing NUL (unix(7))


def claim(path: Path) -> socket.socket:
    """A listening Unix socket at ``path``, mode 0600; a dead daemon's socket file is replaced.

    Raises ConfigError where a live daemon holds the path, something else lies there, or it cannot be used.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise ConfigError(
            f"server.socket: {path} is longer than the {_LONGEST} bytes a Unix socket path may have; "
            "choose a shorter one (--socket or MUXD_SOCKET)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            _clear(path)
            return _bind(path)
    except OSError as error:
        raise ConfigError(f"server.socket: cannot listen on {path}: {error.strerror or error}") from None


def release(path: Path, inode: int) -> None:
    """Remove the socket file if it is still the one with ``inode``: a successor's is left alone."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass


def peer_pid(connected: socket.socket) -> int:
    """Process id of the other end; 0 where it lives in another pid namespace."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two daemons that start together must not both find the old socket dead and remove each other's new
    one. The lock is on the folder, so no lock file is left behind."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"server.socket: {path} is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # nobody listens: its daemon is dead
            return
        raise ConfigError(
            f"server.socket: a muxd already runs with {path} (pid {peer_pid(probe)}); "
            "stop it with `muxctl stop`, or give this one another --socket and --port"
        )


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() creates the file with 0777 less the umask: a chmod afterwards would leave a window.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
