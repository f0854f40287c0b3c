"""A muxd of one's own for a measurement: started as a user would, on a free port, gone at the end.

Used by `muxd profile` and by the scripts in benchmarks/. Readiness comes over ``$NOTIFY_SOCKET``.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muxd.admin.client import AdminClient
from muxd.errors import DaemonUnreachable

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0


@contextmanager
def local_daemon(config: Path, **scheduler: str) -> Iterator[AdminClient]:
    """Serve ``config`` until the block ends; ``scheduler`` overrides settings (policy="temporal").

    Yields the admin door: ``status().address`` is the URL. Raises DaemonUnreachable when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="muxd-own-") as scratch:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(f"{scratch}/notify")
        settings = {f"MUXD_SCHEDULER_{name.upper()}": value for name, value in scheduler.items()}
        settings["STATE_DIRECTORY"] = scratch  # it knows nothing yet, and leaves nothing
        process = subprocess.Popen(
            [sys.executable, "-m", "muxd.cli.muxd", "serve", "--config", str(config), "--port", "0",
             "--socket", f"{scratch}/admin", "--log-level", "warning"],
            env={**os.environ, **settings, "NOTIFY_SOCKET": f"{scratch}/notify"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_ready(listener, process)
            yield AdminClient(Path(scratch, "admin"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)
            listener.close()


def _wait_ready(listener: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    with open(os.pidfd_open(process.pid), closefd=True) as ended:
        while True:
            heard, _, _ = select.select([listener.fileno(), ended.fileno()], [], [], _START_SECONDS)
            if listener.fileno() in heard and b"READY=1" in listener.recv(4096):
                return
            if ended.fileno() in heard or not heard:
                why = f"ended with exit code {process.wait()}" if heard else "is not ready after 180 s"
                raise DaemonUnreachable(f"muxd serve {why}; its own words are above")
